"""A source whose pictures are numbers, so that a batch tells what it was made of."""

from __future__ import annotations

import time

import numpy as np

from dino_tower.sources import Sample, Source


class Numbers(Source):
    """Numbers in place of pictures."""

    def __init__(self, count: int, name: str = "numbers", stretches: list[int] | None = None, window: int = 16) -> None:
        self.count, self.name, self.window = count, name, window
        self.stretches = None if stretches is None else np.array(stretches)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(b"", f"n{index}")


def number_views(sample: Sample, rng: np.random.Generator) -> list[np.ndarray]:
    """A view that tells the sample and its random numbers."""
    number = int(sample.id.rpartition("n")[2])
    return [np.array([[[number % 256, number // 256, 0]]], np.uint8), rng.integers(0, 256, (2, 2, 3), np.uint8)]


def slow_views(sample: Sample, rng: np.random.Generator) -> list[np.ndarray]:
    time.sleep(0.01)
    return number_views(sample, rng)
