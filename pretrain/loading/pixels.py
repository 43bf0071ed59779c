"""Normalisation of views: which mean and standard deviation, and a batch on its way to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dino_tower.images import IMAGENET_MEAN, IMAGENET_STD
from dino_tower.pretrain.loading.data import Batch
from dino_tower.pretrain.objectives.term import Inputs
from dino_tower.pretrain.settings import PixelsConfig
from dino_tower.sources import Source
from dino_tower.sources.measure import measure_mean_std

Triple = tuple[float, float, float]


def mean_and_std(config: PixelsConfig, source: Source) -> tuple[Triple, Triple]:
    """Of RGB in [0, 1]: those given, those measured on a thousand images of the source, or ImageNet's."""
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    mean, std = measure_mean_std(source) if config.measure else (IMAGENET_MEAN, IMAGENET_STD)
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


def to_device(batch: Batch, normalise: Normalise) -> Inputs:
    """A loader's batch as the terms take it, on the device of `normalise`."""
    device = normalise.mean.device
    drawn = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.drawn.items()}
    views = [normalise(view) for view in batch.views]
    return Inputs(
        views, batch.labels.to(device, non_blocking=True), batch.captions, drawn, normalise.mean, normalise.std
    )
