"""Mean intersection over union, and what each image adds to it.

Legend: B images, C classes, H x W pixels of the label at its full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.stats import Parts, of_ratio
from dino_tower.label_pictures import VOID as VOID


class Areas(NamedTuple):
    """Pixels of each class in each image, [B, C] int64: predicted and true, either, predicted, true."""

    intersection: Tensor
    union: Tensor
    predicted: Tensor
    labelled: Tensor


class SegmentationScore(NamedTuple):
    """Over the whole data set. Per class [C]; NaN where a class does not occur (see `segmentation_score`)."""

    iou: Tensor
    accuracy: Tensor
    dice: Tensor
    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float


def areas(prediction: Tensor | np.ndarray, target: Tensor | np.ndarray, classes: int, void: int | None = VOID) -> Areas:
    """Count pixels (mmseg `intersect_and_union`): prediction and target [B, H, W] or [H, W] integers -> [B, C].

    Pixels whose truth is `void` leave every count. The two must have one size: scale predictions up to the label, not
    labels down to the prediction, which forgets thin things and moves the score.
    Raises ConfigError for unlike shapes and for ids outside 0..C-1.
    """
    found, truth = (torch.as_tensor(x).to(torch.int64) for x in (prediction, target))
    if found.shape != truth.shape or truth.ndim not in (2, 3):
        raise ConfigError(
            f"mIoU: prediction {tuple(found.shape)} and label {tuple(truth.shape)}; "
            "need [B, H, W] twice: scale the prediction up to the label's size"
        )
    found, truth = (x.reshape(-1, x.shape[-2] * x.shape[-1]) for x in (found, truth))
    counted = torch.ones_like(truth, dtype=torch.bool) if void is None else truth != void
    _check_ids("label", truth[counted], classes, void)
    _check_ids("prediction", found[counted], classes, None)
    right = counted & (found == truth)
    intersection, predicted, labelled = (
        _histogram(ids, where, classes) for ids, where in ((truth, right), (found, counted), (truth, counted))
    )
    return Areas(intersection, predicted + labelled - intersection, predicted, labelled)


def _histogram(ids: Tensor, where: Tensor, classes: int) -> Tensor:
    """[B, N] ids -> [B, C] counts of those `where` is true."""
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    return torch.bincount((rows * classes + ids)[where], minlength=len(ids) * classes).reshape(len(ids), classes)


def _check_ids(kind: str, ids: Tensor, classes: int, void: int | None) -> None:
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
        rest = "" if void is None else f", or {void} for pixels that do not count"
        raise ConfigError(
            f"mIoU: {kind} ids run from {int(ids.min())} to {int(ids.max())}; need 0 to {classes - 1}{rest}"
        )


def joined(images: Sequence[Areas]) -> Areas:
    """The areas of pictures that were counted one by one, because their sizes differ."""
    if not images:
        raise ConfigError("mIoU: no images")
    return Areas(*(torch.cat(columns) for columns in zip(*images, strict=True)))


def segmentation_score(counts: Areas) -> SegmentationScore:
    """Sum over images first, then mean over classes.

        IoU_c = sum I_c / sum U_c;  accuracy_c = sum I_c / sum L_c;  dice_c = 2 sum I_c / (sum P_c + sum L_c)

    A class in neither prediction nor truth is NaN and leaves the mean; one that is only predicted has IoU 0 and counts.
    """
    both, either, found, true = (x.sum(0).double() for x in counts)
    iou, accuracy, dice = both / either, both / true, 2 * both / (found + true)
    return SegmentationScore(
        iou, accuracy, dice, float(iou.nanmean()), float(accuracy.nanmean()), float(both.sum() / true.sum())
    )


def miou_parts(counts: Areas) -> Parts:
    """For `stats`: mIoU as a ratio of sums over images."""
    return of_ratio(counts.intersection.cpu().numpy(), counts.union.cpu().numpy())


def without_class_zero(target: Tensor, void: int = VOID) -> Tensor:
    """ADE20K: label 0 is "other", which does not count; classes 1..C become 0..C-1 (mmseg `reduce_zero_label`)."""
    return torch.where((target == 0) | (target == void), torch.full_like(target, void), target - 1)
