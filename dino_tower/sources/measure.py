"""Mean and standard deviation of a source's own colours, for those who do not want ImageNet's."""

from __future__ import annotations

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.sources.base import Source

SIDE = 64  # JPEGs are decoded at a reduced scale that covers this: a mean needs no more


def measure_mean_std(source: Source, count: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of values from 0 to 1, over `count` evenly spread images.

    Every image counts alike, whatever its size; the deviation is that of single pixels, across images too.
    Raises ConfigError when none of them can be read.
    """
    means, squares = [], []
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist():
        try:
            image = source[index].image(at_least=(SIDE, SIDE))
        except UnreadableImage:
            continue
        pixels = np.asarray(image, np.float32).reshape(-1, 3) / 255
        means.append(pixels.mean(0, dtype=np.float64))
        squares.append((pixels**2).mean(0, dtype=np.float64))
    if not means:
        raise ConfigError(f"--data {source.name!r}: no image could be read to measure mean and std")
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 1e-8))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
