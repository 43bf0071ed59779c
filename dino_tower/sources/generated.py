"""`scenes[:LEVEL]`: the built-in generator as a source."""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image

from dino_tower.errors import unknown
from dino_tower.scenes import LEVELS, Scene, kind_names, make_scene
from dino_tower.sources.base import Sample, Source, SourceOptions

COUNTS = {"train": 10_000, "test": 2_000}  # the generator has no end: an epoch needs one


def open_scenes(spelling: str, options: SourceOptions, split: str) -> Source:
    """`scenes` is `scenes:easy`. More or fewer of them: --source.max-samples."""
    level = spelling.partition(":")[2] or "easy"
    if level not in LEVELS:
        raise unknown("level of scenes", level, LEVELS, f"--data {spelling!r}")
    part = options.split or split
    if part == "all":
        part = "train"
    if part not in COUNTS:
        raise unknown("split of scenes", part, COUNTS, "--source.split")
    return SceneSource(level, part, options.max_samples or COUNTS[part])


class SceneSource(Source):
    """Scenes 0 .. count - 1 of one level and split; the label is the scene's kind, the caption describes it."""

    def __init__(self, level: str, split: str, count: int) -> None:
        self.level, self.split, self.count = level, split, count
        self.name = f"scenes:{level}"
        self.has_splits = True
        self.classes = kind_names(level)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        scene = make_scene(self.level, index, self.split)
        picture = partial(Image.fromarray, scene.image)
        return Sample(picture, self.sample_id(index), scene.kind, partial(_caption, scene), partial(_phrases, scene))

    def sample_id(self, index: int) -> str:
        return f"{self.split}-{index:06d}"

    def labels(self) -> np.ndarray:
        return np.arange(self.count, dtype=np.int64) % len(kind_names(self.level))  # kinds take turns


def _caption(scene: Scene) -> str:
    return scene.caption


def _phrases(scene: Scene) -> tuple[str, ...]:
    return tuple(text for text, _ in scene.phrases)
