"""Saliency: how well a soft mask finds the one thing that stands out. IoU, accuracy and max F (TokenCut's `metrics`).

Legend: B images, H x W pixels, T thresholds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dino_tower.errors import ConfigError

THRESHOLDS = 255
BETA_SQUARED = 0.3  # precision counts more than recall


class Saliency(NamedTuple):
    """Of each image: IoU and accuracy at 0.5 [B], F at every threshold [B, T]."""

    iou: Tensor
    accuracy: Tensor
    f: Tensor

    @property
    def max_f(self) -> float:
        """One threshold for the whole data set: F averaged over images, then the best threshold.

        The best threshold of every image by itself would be chosen with the truth in hand.
        """
        return float(self.f.mean(0).max())


def saliency(prediction: Tensor, truth: Tensor) -> Saliency:
    """Score maps [B, H, W] or [B, 1, H, W] with values 0..1 against masks of the same size.

        F = 1.3 P R / (0.3 P + R) at thresholds 0, 1/255, ...;  nothing predicted: P = 1, nothing there: R = 1

    An empty prediction of an empty mask has IoU 1 (the published code: NaN, which spoils the mean).
    """
    if prediction.shape != truth.shape:
        raise ConfigError(f"saliency: prediction {tuple(prediction.shape)}, mask {tuple(truth.shape)}; need one size")
    found, true = prediction.flatten(1).float(), truth.flatten(1) > 0.5
    mask = found > 0.5
    both, either = (mask & true).sum(1).double(), (mask | true).sum(1).double()
    iou = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    thresholds = torch.arange(0, 1, 1 / THRESHOLDS, dtype=torch.float64).float().to(found.device)
    # Predicted pixels above a threshold = values sorted and searched, instead of 255 passes over the picture.
    predicted = _above(found, thresholds)
    right = _above(torch.where(true, found, -torch.inf), thresholds)
    labelled = true.sum(1, keepdim=True).double()
    precision = torch.where(predicted > 0, right / predicted.clamp(min=1), 1.0)
    recall = torch.where(labelled > 0, right / labelled.clamp(min=1), 1.0)
    under = BETA_SQUARED * precision + recall
    f = torch.where(under > 0, (1 + BETA_SQUARED) * precision * recall / under.where(under > 0, 1.0), 0.0)
    return Saliency(iou, (mask == true).double().mean(1), f)


def _above(values: Tensor, thresholds: Tensor) -> Tensor:
    """How many values of each row [B, P] are larger than each threshold [T] -> [B, T]."""
    ordered = values.sort(1).values
    smaller = torch.searchsorted(ordered, thresholds.expand(len(ordered), -1).contiguous(), right=True)
    return (ordered.shape[1] - smaller).double()
