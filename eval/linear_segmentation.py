"""Linear segmentation, fast form: a linear head on standardised, cached patch features, solved instead of trained.

Legend: B images, h x w patch grid, H x W label pixels, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.in_context import full_size, patch_labels
from dino_tower.eval.linear_probe import Standard, standardise
from dino_tower.eval.logistic import Linear, fit_logistic
from dino_tower.eval.miou import VOID, areas, segmentation_score

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
SOLVERS = ("lbfgs", "ridge")
STEPS = 60  # of L-BFGS for each strength: the scores do not move after about 40


class SegmentationHead(NamedTuple):
    """scores = classifier(standard(patches)); `validation` is the mIoU of each strength on the slice of train."""

    classifier: Linear
    standard: Standard
    strength: float
    validation: dict[float, float]

    def scores(self, patches: Tensor) -> Tensor:
        """Class scores on the grid: [B, h, w, D] -> [B, h, w, C]."""
        return self.classifier(self.standard(patches))

    def predict(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """Class of each pixel of the label at its full size (H, W): [B, h, w, D] -> [B, H, W]."""
        return full_size(self.scores(patches), size)


def fit_ridge(features: Tensor, targets: Tensor, strength: float) -> Linear:
    """Least squares onto the shares [N, C] with an L2 penalty on the weight (not the bias), closed form in float64.

    W = (X^T X + I / strength)^-1 X^T (Y - mean Y), X centred
    """
    x, y = features.double(), targets.double()
    mean, middle = x.mean(0), y.mean(0)
    x = x - mean
    gram = x.T @ x
    gram.diagonal().add_(1 / strength)
    weight = torch.linalg.solve(gram, x.T @ (y - middle)).T
    return Linear(weight.float(), (middle - weight @ mean).float())


def fit_segmentation(
    patches: Tensor,
    target: Tensor,
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
    share: float = 0.1,
    seed: int = 0,
    solver: str = "lbfgs",
    void: int = VOID,
) -> SegmentationHead:
    """Fit on training images: patches [B, h, w, D], target [B, H, W] with H, W multiples of the grid.

    Each patch is asked for the shares of its classes; patches with no labelled pixel are left out. solver: "lbfgs"
    (softmax, convex) or "ridge" (least squares, closed form, faster and some points lower). The strength is chosen by
    full-size mIoU on `share` of the training images, then the head is fitted on all of them.
    Raises ConfigError for one image, no labelled patch, or shapes that do not fit.
    """
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    if len(patches) < 2 or len(patches) != len(target):
        raise ConfigError(f"linear segmentation: {len(patches)} images and {len(target)} labels; need two or more")
    shares = patch_labels(target, (patches.shape[1], patches.shape[2]), classes, void)
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(share * len(patches)))
    validation, fit = order[:held], order[held:]
    tried: dict[float, float] = {}
    start: Linear | None = None
    for strength in sorted(strengths) if len(strengths) > 1 else ():  # from strong to weak, each from the one before
        head = SegmentationHead(*_fit(patches[fit], shares[fit], strength, solver, start), strength, {})
        start = head.classifier
        found = head.predict(patches[validation], (target.shape[-2], target.shape[-1]))
        tried[strength] = segmentation_score(areas(found, target[validation], classes, void)).mean_iou
    # NaN (a slice with nothing labelled) is never the best.
    best = max(tried, key=lambda one: (tried[one] == tried[one], tried[one])) if tried else strengths[0]
    return SegmentationHead(*_fit(patches, shares, best, solver, start), best, tried)


def _fit(
    patches: Tensor, shares: Tensor, strength: float, solver: str, start: Linear | None = None
) -> tuple[Linear, Standard]:
    rows, targets = patches.flatten(0, 2), shares.flatten(0, 2)
    labelled = targets.sum(1) > 0
    if not labelled.any():
        raise ConfigError("linear segmentation: no patch has a labelled pixel")
    rows, targets = rows[labelled], targets[labelled]
    standard = standardise(rows)
    if solver == "ridge":
        return fit_ridge(standard(rows), targets, strength), standard
    return fit_logistic(standard(rows), targets, targets.shape[1], strength, start, STEPS), standard
