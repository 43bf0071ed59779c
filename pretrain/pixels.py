"""Normalisation of views: which mean and standard deviation, and the arithmetic on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.images import IMAGENET_MEAN, IMAGENET_STD, UnreadableImage
from dino_tower.pretrain.settings import PixelsConfig
from dino_tower.sources import Source

MEASURED = 1000  # images; the standard error of a channel's mean is then below one grey level

Triple = tuple[float, float, float]


def mean_and_std(config: PixelsConfig, source: Source) -> tuple[Triple, Triple]:
    """Of RGB in [0, 1]: those given, measured on the first images of the source, or ImageNet's."""
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    if not config.measure:
        return _triple(IMAGENET_MEAN), _triple(IMAGENET_STD)
    pixels = []
    for i in range(min(MEASURED, len(source))):
        try:
            thumbnail = source[i].image().resize((64, 64))
        except UnreadableImage:
            continue
        pixels.append(np.asarray(thumbnail, dtype=np.float64).reshape(-1, 3) / 255)
    if not pixels:
        raise ConfigError("pixels.measure: none of the first images can be read")
    values = np.concatenate(pixels)
    mean, std = values.mean(0).round(4).tolist(), values.std(0).round(4).tolist()
    if min(std) <= 0:
        raise ConfigError("pixels.measure: the images have no contrast; give pixels.mean and pixels.std")
    return _triple(mean), _triple(std)


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue


class Normalise:
    """uint8 views [B, S, S, 3] to normalised float pixels [B, 3, S, S] on the device."""

    def __init__(self, mean: Triple, std: Triple, device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    def __call__(self, view: Tensor) -> Tensor:
        pixels = view.to(self.mean.device, non_blocking=True).permute(0, 3, 1, 2)
        return (pixels.float().div_(255) - self.mean) / self.std
