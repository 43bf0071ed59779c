"""Region similarity J and boundary accuracy F of video masks, as the DAVIS 2017 toolkit counts them.

Legend: T frames, H x W pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from dino_tower.errors import ConfigError

TOLERANCE = 0.008  # of the diagonal


def region_similarity(prediction: Tensor, truth: Tensor, void: Tensor | None = None) -> Tensor:
    """J of each frame [T]: IoU of masks [T, H, W] (bool); both empty: 1. void: pixels that do not count."""
    found, true = _masks(prediction, truth, void)
    both, either = (found & true).sum((1, 2)).double(), (found | true).sum((1, 2)).double()
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def boundary_accuracy(
    prediction: Tensor, truth: Tensor, void: Tensor | None = None, tolerance: float = TOLERANCE
) -> Tensor:
    """F of each frame [T]: harmonic mean of boundary precision and recall for masks [T, H, W].

    precision = share of the prediction's boundary within d of the true one, recall the other way round
    d = ceil(tolerance * diagonal) pixels;  both without boundary: 1, one of them: 0
    """
    found, true = _masks(prediction, truth, void)
    reach = float(np.ceil(tolerance * np.linalg.norm(found.shape[1:])))
    frames = zip(found.cpu().numpy(), true.cpu().numpy(), strict=True)
    return torch.tensor([_frame(boundary(a), boundary(b), reach) for a, b in frames], dtype=torch.float64)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask [H, W] that differ from the one right, below or right below (DAVIS `_seg2bmap`)."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _frame(found: np.ndarray, true: np.ndarray, reach: float) -> float:
    if not found.any() or not true.any():
        return float(not found.any() and not true.any())
    precision, recall = _dilated(true, reach)[found].mean(), _dilated(found, reach)[true].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _dilated(edge: np.ndarray, reach: float) -> np.ndarray:
    """Pixels within `reach` of a boundary: its dilation by a disk, by way of the exact distance."""
    distance = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= reach + 1e-3  # squared distances are integers, so nothing lies between reach and this


def frame_statistics(values: Tensor) -> tuple[float, float, float]:
    """(mean, recall, decay) of a score per frame [T]: recall = share above 0.5, decay = first quarter - last quarter.

    Quarters share their border frames, as in DAVIS `db_statistics`.
    """
    borders = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[borders[0] : borders[1] + 1], values[borders[3] : borders[4] + 1]
    return float(values.mean()), float((values > 0.5).double().mean()), float(first.mean() - last.mean())


def _masks(prediction: Tensor, truth: Tensor, void: Tensor | None) -> tuple[Tensor, Tensor]:
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise ConfigError(f"video: masks {tuple(prediction.shape)} and {tuple(truth.shape)}; need [T, H, W] twice")
    counted = torch.ones_like(truth, dtype=torch.bool) if void is None else ~void.bool()
    return prediction.bool() & counted, truth.bool() & counted
