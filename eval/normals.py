"""Surface normals: angular error per image, and a linear head.

Legend: B images, h x w patch grid, D features, H x W label pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.linear_probe import Standard, standardise
from dino_tower.eval.linear_segmentation import fit_ridge
from dino_tower.eval.logistic import Linear

LIMITS = {"d1": 11.25, "d2": 22.5, "d3": 30.0}  # degrees


def normal_metrics(prediction: Tensor, truth: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
    """Scores of each image {"d1", "d2", "d3", "rmse": [B]}: the share of pixels off by less than 11.25, 22.5 and 30
    degrees, and the root mean square error in degrees (probe3d `evaluate_surface_norm`).

    prediction, truth [B, 3, H, W], any length of the vectors; valid [B, 1, H, W], by default where truth is not 0.
    NaN for an image without a valid pixel.
    """
    if prediction.shape != truth.shape or truth.ndim != 4 or truth.shape[1] != 3:
        raise ConfigError(f"normals: {tuple(prediction.shape)} and {tuple(truth.shape)}; need [B, 3, H, W] twice")
    counted = (truth != 0).any(1) if valid is None else valid.bool().reshape(len(truth), *truth.shape[2:])
    found, true = (F.normalize(x.double(), dim=1) for x in (prediction, truth))
    error = torch.rad2deg((found * true).sum(1).clamp(-1, 1).acos())
    pixels = counted.sum((1, 2)).double()
    scores = {name: ((error < limit) & counted).sum((1, 2)) / pixels for name, limit in LIMITS.items()}
    return scores | {"rmse": ((error**2 * counted).sum((1, 2)) / pixels).sqrt()}


class NormalHead(NamedTuple):
    """normals = unit length of bilinear(classifier(standard(patches))); `validation`: RMSE in degrees on the slice."""

    classifier: Linear
    standard: Standard
    strength: float
    validation: dict[float, float]

    def predict(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, h, w, D] -> [B, 3, H, W]."""
        grid = self.classifier(self.standard(patches)).permute(0, 3, 1, 2)
        return F.normalize(F.interpolate(grid, size=size, mode="bilinear"), dim=1)


def fit_normals(
    patches: Tensor,
    truth: Tensor,
    valid: Tensor | None = None,
    strengths: Sequence[float] = (1e-4, 1e-2, 1.0),
    share: float = 0.1,
    seed: int = 0,
) -> NormalHead:
    """Ridge regression of each patch's mean normal: patches [B, h, w, D], truth [B, 3, H, W].

    The strength is chosen by RMSE on `share` of these images, then the head is fitted on all of them.
    Raises ConfigError for fewer than two images and for sizes that do not fit.
    """
    (h, w), (height, width) = patches.shape[1:3], truth.shape[2:]
    if len(patches) < 2 or len(patches) != len(truth) or height % h or width % w:
        raise ConfigError(
            f"normals: patches {tuple(patches.shape)}, truth {tuple(truth.shape)}; need two images or more, and sides "
            "that are multiples of the grid"
        )
    counted = (truth != 0).any(1, keepdim=True) if valid is None else valid.bool()
    sums = F.avg_pool2d(F.normalize(truth.float(), dim=1) * counted, (height // h, width // w)).permute(0, 2, 3, 1)
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(share * len(patches)))
    validation, fit = order[:held], order[held:]
    tried: dict[float, float] = {}
    for strength in strengths if len(strengths) > 1 else ():
        head = NormalHead(*_ridge(patches[fit], sums[fit], strength), strength, {})
        found = head.predict(patches[validation], (height, width))
        tried[strength] = float(normal_metrics(found, truth[validation], counted[validation])["rmse"].nanmean())
    best = min(tried, key=lambda one: (tried[one] != tried[one], tried[one])) if tried else strengths[0]
    return NormalHead(*_ridge(patches, sums, best), best, tried)


def _ridge(patches: Tensor, sums: Tensor, strength: float) -> tuple[Linear, Standard]:
    rows, targets = patches.flatten(0, 2), sums.flatten(0, 2)
    seen = targets.norm(dim=1) > 0
    standard = standardise(rows[seen])
    return fit_ridge(standard(rows[seen]), F.normalize(targets[seen], dim=1), strength), standard
