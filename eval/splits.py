"""Which images are trained on, chosen on and judged: splits that are the same everywhere, with no image twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dino_tower.errors import ConfigError


def few_shot(labels: Tensor | Sequence[int], per_class: int, seed: int = 0) -> Tensor:
    """Indices of `per_class` images of each class [classes x per_class], classes ascending (DINOv2 `filter_train`).

        for each class: the first per_class of a random permutation of its images

    Raises ConfigError for a class with fewer images: a smaller share would make the classes unlike.
    """
    labels = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
    rng = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique().tolist():
        own = (labels == label).nonzero()[:, 0]
        if len(own) < per_class:
            raise ConfigError(f"few-shot: class {label} has {len(own)} images; {per_class} are asked for")
        chosen.append(own[torch.randperm(len(own), generator=rng)[:per_class]])
    return torch.cat(chosen) if chosen else labels.new_zeros(0)


def held_out(labels: Tensor | Sequence[int], share: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(fit, validation) indices of the training images: every class gives `share` of its images to validation.

    Layer, learning rate and regularisation are chosen on this slice; the reported split is looked at once, afterwards.
    A class with one image stays in fit. If rounding leaves validation empty, the largest class gives one image.
    Raises ConfigError for a share outside (0, 1) and for fewer than two images.
    """
    labels = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
    if not 0 < share < 1:
        raise ConfigError(f"held-out slice: share {share}; must lie between 0 and 1 (0.1 is usual)")
    if len(labels) < 2:
        raise ConfigError(f"held-out slice: {len(labels)} training images; needs two or more")
    rng = torch.Generator().manual_seed(seed)
    validation = torch.zeros(len(labels), dtype=torch.bool)
    classes, counts = labels.unique(return_counts=True)
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        own = (labels == label).nonzero()[:, 0]
        take = min(count - 1, round(count * share))
        validation[own[torch.randperm(count, generator=rng)[:take]]] = True
    if not validation.any():
        validation[(labels == classes[counts.argmax()]).nonzero()[0, 0]] = True
    return (~validation).nonzero()[:, 0], validation.nonzero()[:, 0]


def shard(images: int, process: int, processes: int) -> Tensor:
    """The images that one of several processes reads: every processes-th one. Shares may differ by one in length.

    A sampler that pads the shares to equal length evaluates some images twice, and the score moves with the number of
    processes.
    """
    if not 0 <= process < processes:
        raise ConfigError(f"shard: process {process} of {processes}; processes count from 0")
    return torch.arange(process, images, processes)
