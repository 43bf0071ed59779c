"""A finished adaptation, to use: pictures in, classes, masks or depth out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from PIL import Image

from dino_tower.adapters.building import Built, build
from dino_tower.adapters.finish import FACTS, FORMAT
from dino_tower.adapters.settings import Config
from dino_tower.adapters.state import HEAD
from dino_tower.adapters.tasks import TASKS, Range
from dino_tower.adapters.validation import answers
from dino_tower.checkpoint import load_tensors, read_json
from dino_tower.config import from_tree
from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage, read_image
from dino_tower.peft_adapter import WEIGHTS, load_adapter_weights, read_base, tower_below
from dino_tower.run.state import load_strictly
from dino_tower.tower import Tower


class AdaptedTower:
    """A tower with its head. Make one with `load_adapted`.

    task: classify, segment or depth. classes: their names, by number. score: on the pictures held out while training.
    """

    def __init__(self, built: Built, config: Config, classes: tuple[str, ...], score: dict[str, Any]) -> None:
        self.task, self.classes, self.score = config.task, classes, score
        self._built, self._range = built, Range(config.target.low, config.target.high)
        self.model = built.model.eval()

    @property
    def tower(self) -> Tower:
        """The tower as it was, with its processor."""
        return self._built.tower

    def to(self, device: str | torch.device) -> AdaptedTower:
        """Move it; returns itself."""
        self.model.to(device)
        return self

    def predict(self, images: Sequence[Image.Image | str | Path]) -> list[np.ndarray]:
        """One answer a picture: classify int64 [], segment uint8 [H, W], depth float32 [H, W] in metres, H x W being
        the picture's own size. Raises ConfigError for a picture that cannot be read."""
        pictures = []
        for image in images:
            try:
                pictures.append(read_image(image))
            except UnreadableImage as error:
                raise ConfigError(f"{image}: cannot be read: {error.reason}") from None
        scores = answers(self.model, self._built, pictures)
        answer = TASKS[self.task].answer
        return [
            answer(one.cpu(), (picture.height, picture.width), self._range).numpy()
            for one, picture in zip(scores, pictures, strict=True)
        ]


def load_adapted(folder: str | Path) -> AdaptedTower:
    """What `dino-tower adapt` left in a directory, on the CPU.

    Raises ConfigError for a directory that is none or not finished, for damaged files, and where the tower below the
    adapter is no longer the one it was trained on.
    """
    folder = Path(folder)
    if not (folder / FACTS).is_file():
        raise ConfigError(f"{folder}: no finished adaptation: it has no {FACTS}")
    facts = read_json(folder / FACTS)
    if facts.get("format") != FORMAT:
        raise ConfigError(f"{folder / FACTS}: format {facts.get('format')}; this version reads format {FORMAT}")
    config = from_tree(Config(), facts["settings"], str(folder / FACTS))
    base, classes = read_base(folder), tuple(facts["classes"])
    below = tower_below(folder)
    method = "none" if base.method == "full" else config.method
    settings = {**facts["settings"], "tower": below, "method": method, "merge": False, "size": facts["size"]}
    built = build(from_tree(Config(), settings, str(folder / FACTS)), classes)
    if base.method != "full" and built.base.digest != base.digest:
        raise ConfigError(f"{folder}: an adapter for another base: the weights of {below} have changed since")
    if method != "none":
        load_adapter_weights(cast(PeftModel, built.model.tower), load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    load_strictly(built.model.head, load_tensors(folder / HEAD), folder / HEAD)
    return AdaptedTower(built, config, classes, facts["score"])
