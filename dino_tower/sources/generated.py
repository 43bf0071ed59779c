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
    counts = {**COUNTS, "all": sum(COUNTS.values())}
    if part not in counts:
        raise unknown("split of scenes", part, counts, "--source.split")
    return SceneSource(level, part, options.max_samples or counts[part])


class SceneSource(Source):
    """Scenes 0 .. count - 1 of one level and split; the label is the scene's kind, the caption describes it.

    Of "all" the first COUNTS["train"] are those of train, the rest those of test.
    """

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
        scene = self.scene(index)
        picture = partial(Image.fromarray, scene.image)
        return Sample(picture, self.sample_id(index), scene.kind, partial(_caption, scene), partial(_phrases, scene))

    def sample_id(self, index: int) -> str:
        split, number = self._place(index)
        return f"{split}-{number:06d}"

    def labels(self) -> np.ndarray:
        numbers = np.arange(self.count, dtype=np.int64)
        if self.split == "all":
            numbers[COUNTS["train"] :] -= COUNTS["train"]
        return numbers % len(kind_names(self.level))  # kinds take turns

    def scene(self, index: int) -> Scene:
        """Scene `index` with all that is known of it."""
        split, number = self._place(index)
        return make_scene(self.level, number, split)

    def _place(self, index: int) -> tuple[str, int]:
        """The split of a scene and its number in that."""
        if self.split != "all":
            return self.split, index
        return ("train", index) if index < COUNTS["train"] else ("test", index - COUNTS["train"])


def _caption(scene: Scene) -> str:
    return scene.caption


def _phrases(scene: Scene) -> tuple[str, ...]:
    return tuple(text for text, _ in scene.phrases)
