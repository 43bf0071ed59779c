"""Depth heads that a CPU fits in seconds: DINOv2's bins on tiles of pictures, and a ridge regression of log depth.

Legend: B images, h x w patch grid, D features; depths in metres, [B, CELL h, CELL w], 0 where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.eval.depth import LOW, depth_metrics
from dino_tower.eval.depth_head import DepthHead, fit_depth
from dino_tower.eval.linear_probe import Standard, standardise
from dino_tower.eval.linear_segmentation import fit_ridge
from dino_tower.eval.logistic import Linear

CELL = 4  # label pixels along a side of a patch: the resolution of DINOv2's head
# Of the bins: on tiles of 8 x 8 patches, four a step. Published: 256 bins, 38,400 steps of 16 whole pictures, hours on
# a CPU. 64 bins, whose weighted mean is no coarser, end within 2 % of 256 in half the time.
BINS, TILE, STEPS, BATCH, RATES = 64, 8, 300, 4, (3e-3, 1e-2)
ROWS, STRENGTHS = 30_000, (1e-5, 1e-3, 1e-1)  # of the ridge


class Ridge(NamedTuple):
    """log depth = classifier(standard(patches))."""

    classifier: Linear
    standard: Standard

    def predict(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """Metres [B, 1, H, W] from [B, h, w, D]: logarithms are scaled up bilinearly."""
        grid = self.classifier(self.standard(patches)).permute(0, 3, 1, 2)
        return F.interpolate(grid, size=size, mode="bilinear").exp()


Head = TypeVar("Head", DepthHead, Ridge)


def chosen_of(
    candidates: Sequence[float], fit: Callable[[Tensor, float], Head], features: Tensor, truth: Tensor, high: float,
    seed: int,
) -> tuple[Head, float]:  # fmt: skip
    """The candidate with the lowest RMSE on a tenth of the training pictures, and a head fitted to all of them with it.

    fit: places of pictures and a candidate to a head; features [B, h, w, D], truth [B, H, W].
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(0.1 * len(features)))
    aside, size = order[:held], (truth.shape[1], truth.shape[2])
    tried = {}
    for one in candidates:
        found = fit(order[held:], one).predict(features[aside], size)
        tried[one] = float(depth_metrics(found, truth[aside], LOW, high)["rmse"].nanmean())
    best = min(tried, key=lambda one: (tried[one] != tried[one], tried[one]))
    return fit(order, best), best


def fit_bins(features: Tensor, truth: Tensor, high: float, seed: int, places: Tensor, rate: float) -> DepthHead:
    """DINOv2's head, on tiles of the pictures: a step costs the same whatever the size of the grid."""
    rows, depth = tiles(features[places], TILE), tiles(truth[places][..., None], TILE * CELL)[..., 0]
    return fit_depth(rows, depth[:, None], LOW, high, BINS, (rate,), steps=STEPS, batch=BATCH, seed=seed)


def tiles(grid: Tensor, side: int) -> Tensor:
    """[B, h, w, D] -> [B n m, side, side, D], or one tile a picture where it is smaller; what is left over is cut."""
    high, wide = min(side, grid.shape[1]), min(side, grid.shape[2])
    n, m = grid.shape[1] // high, grid.shape[2] // wide
    whole = grid[:, : n * high, : m * wide].unflatten(2, (m, wide)).unflatten(1, (n, high))
    return whole.transpose(2, 3).flatten(0, 2)


def fit_log_depth(patches: Tensor, truth: Tensor, high: float, seed: int, places: Tensor, strength: float) -> Ridge:
    """Ridge regression of each patch's mean log depth: patches [B, h, w, D], truth [B, CELL h, CELL w]."""
    counted = ((truth[places] > LOW) & (truth[places] <= high)).float()
    share = F.avg_pool2d(counted, CELL)
    targets = F.avg_pool2d(truth[places].clamp(min=LOW).log() * counted, CELL) / share.clamp(min=1e-6)
    known = (share.flatten() > 0).nonzero()[:, 0]
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:ROWS]]
    rows = patches[places].flatten(0, 2)[known]
    standard = standardise(rows)
    return Ridge(fit_ridge(standard(rows), targets.flatten()[known, None], strength), standard)
