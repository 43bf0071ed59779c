"""Normalisation of views: which mean and standard deviation, and a batch on its way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dino_tower.images import IMAGENET_MEAN, IMAGENET_STD
from dino_tower.pretrain.loading.data import Batch
from dino_tower.pretrain.network.lora_settings import TOWER
from dino_tower.pretrain.network.starts import pixels_of
from dino_tower.pretrain.objectives.term import Inputs
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.sources.measure import measure_mean_std

Triple = tuple[float, float, float]


def mean_and_std(config: Config, source: Source, checkpoint: Path | None = None) -> tuple[Triple, Triple]:
    """Of RGB in [0, 1]: those given, those measured on a thousand images of the source, the start's, or ImageNet's.

    checkpoint: of this run, where it goes on: what it was begun with stays, whatever has become of data and start.
    """
    pixels = config.pixels
    known: tuple[Sequence[float], Sequence[float]] | None = None
    if pixels.mean is not None and pixels.std is not None:
        return pixels.mean, pixels.std
    if checkpoint is not None:
        known = pixels_of(str(checkpoint / "student"))  # none in an adapter's
    if known is None and pixels.measure:
        known = measure_mean_std(source)
    if known is None:
        known = _of_the_start(config)
    mean, std = known or (IMAGENET_MEAN, IMAGENET_STD)
    return _triple(mean), _triple(std)


def said_of_pixels(config: Config, mean: Triple, std: Triple) -> str:
    """What a person should know of a start's mean and std: that they are not ImageNet's, or not those of the run."""
    known = _of_the_start(config)
    if known is None:
        return ""
    theirs = "mean " + " and std ".join(" ".join(f"{v:.4g}" for v in part) for part in known)
    if any(abs(a - b) > 1e-4 for a, b in zip((*known[0], *known[1]), (*mean, *std), strict=True)):
        return f"\nnote         pixels: {config.init_from} knows them by {theirs}; leave pixels out to go on with these"
    usual = [*known[0], *known[1]] == [*IMAGENET_MEAN, *IMAGENET_STD]
    return "" if usual else f"; pixels as it knows them, {theirs}"


def _of_the_start(config: Config) -> tuple[Sequence[float], Sequence[float]] | None:
    """None without a start; an adapter has checks of its own (network/lora.py)."""
    return pixels_of(config.init_from) if config.init_from is not None and config.arch != TOWER else None


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
