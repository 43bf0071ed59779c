"""What each task asks of a head's scores: a loss while training, an answer and a score of it afterwards.

Legend: B images, K outputs, H x W pixels of the label, h x w the grid of the scores.
Labels: classify int64 [B]; segment int64 [B, H, W] with 255 for pixels that do not count; depth float32 [B, H, W] in
metres, 0 where it is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.adapters.dense_heads import depth_of, scaled_up
from dino_tower.label_pictures import VOID

Row = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Metres between which depth is told; labels outside do not count."""

    low: float
    high: float


def class_loss(scores: Tensor, labels: Tensor, depth: Range) -> Tensor:
    """Cross entropy: scores [B, K], labels [B]."""
    return F.cross_entropy(scores.float(), labels)


def segment_loss(scores: Tensor, labels: Tensor, depth: Range) -> Tensor:
    """Cross entropy over the pixels that count, at the labels' size; 0 where none does."""
    found = scaled_up(scores, (labels.shape[-2], labels.shape[-1]))
    total = F.cross_entropy(found, labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)


def depth_loss(scores: Tensor, labels: Tensor, depth: Range) -> Tensor:
    """Scale-invariant log loss (Eigen 2014, as AdaBins and DINOv2 have it) over the pixels of all images together.

    g = log(found + 0.001) - log(true + 0.001);  loss = sqrt(var g + 0.15 mean(g)^2)

    0 where fewer than two pixels have a label.
    """
    size = (labels.shape[-2], labels.shape[-1])
    found = F.interpolate(depth_of(scores, depth.low, depth.high)[:, None], size=size, mode="bilinear")[:, 0]
    seen = (labels > depth.low) & (labels <= depth.high)
    if int(seen.sum()) < 2:
        return 0 * scores.sum()
    g = (found[seen] + 1e-3).log() - (labels[seen] + 1e-3).log()
    return (g.var() + 0.15 * g.mean().square() + 1e-12).sqrt()


def largest_share(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of the most frequent class among the answers of a batch, and among its labels; nothing for depth."""
    if labels.is_floating_point():
        return {}
    shares = {}
    for name, classes in (("largest_answer", scores.detach().argmax(1)), ("largest_label", labels[labels != VOID])):
        counts = torch.bincount(classes.flatten())
        shares[name] = float(counts.max() / counts.sum()) if len(counts) else 0.0
    return shares


def class_answer(scores: Tensor, size: tuple[int, int], depth: Range) -> Tensor:
    """Scores [1, K] -> class []."""
    return scores[0].argmax()


def segment_answer(scores: Tensor, size: tuple[int, int], depth: Range) -> Tensor:
    """Scores [1, K, h, w] -> class of each pixel uint8 [H, W]."""
    return scaled_up(scores, size)[0].argmax(0).to(torch.uint8)


def depth_answer(scores: Tensor, size: tuple[int, int], depth: Range) -> Tensor:
    """Scores [1, K, h, w] -> metres float32 [H, W]."""
    found = depth_of(scores, depth.low, depth.high)[:, None]
    return F.interpolate(found, size=size, mode="bilinear")[0, 0]


def class_row(answer: np.ndarray, label: Any, classes: int, depth: Range) -> Row:
    """What one picture adds to the accuracy."""
    return {"answer": int(answer), "label": int(label), "right": int(answer) == int(label)}


def segment_row(answer: np.ndarray, label: np.ndarray, classes: int, depth: Range) -> Row:
    """What one picture adds to the mIoU: for each class that is predicted or true, [both, either] in pixels."""
    counted = label != VOID
    joint = np.bincount(label[counted].astype(np.int64) * classes + answer[counted], minlength=classes**2)
    joint = joint.reshape(classes, classes)
    both = joint.diagonal()
    either = joint.sum(0) + joint.sum(1) - both
    return {"areas": {str(c): [int(both[c]), int(either[c])] for c in np.flatnonzero(either).tolist()}}


def depth_row(answer: np.ndarray, label: np.ndarray, classes: int, depth: Range) -> Row:
    """RMSE in metres and share of pixels within 1.25 of the truth; nothing for a picture without known depth."""
    seen = (label > depth.low) & (label <= depth.high)
    if not seen.any():
        return {}
    found, true = np.clip(answer[seen].astype(np.float64), depth.low, depth.high), label[seen].astype(np.float64)
    ratio = np.maximum(found / true, true / found)
    return {"rmse": float(np.sqrt(np.mean((found - true) ** 2))), "a1": float(np.mean(ratio < 1.25))}


def accuracy(rows: list[Row]) -> dict[str, float]:
    """Share of right answers."""
    return {"accuracy": float(np.mean([row["right"] for row in rows]))}


def mean_iou(rows: list[Row]) -> dict[str, float]:
    """Areas summed over pictures first, then the mean over classes that are predicted or true; nothing where no pixel
    counts."""
    total: dict[str, np.ndarray] = {}
    for row in rows:
        for name, areas in row["areas"].items():
            total[name] = total.get(name, np.zeros(2)) + areas
    if not total:
        return {}
    sums = np.array(list(total.values()))
    return {"miou": float((sums[:, 0] / sums[:, 1]).mean()), "pixel_accuracy": _pixel_accuracy(sums)}


def _pixel_accuracy(sums: np.ndarray) -> float:
    # either = predicted + true - both; summed over classes, predicted and true are the same pixels
    both, either = sums.sum(0)
    return float(2 * both / (either + both))


def mean_rows(rows: list[Row]) -> dict[str, float]:
    """The mean over pictures of what they have."""
    names = {name for row in rows for name in row if name != "id"}
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in sorted(names)}


@dataclass(frozen=True)
class Task:
    """One task. score: name of the number that sums it up; dense: whether labels are pictures."""

    loss: Callable[[Tensor, Tensor, Range], Tensor]
    answer: Callable[[Tensor, tuple[int, int], Range], Tensor]
    row: Callable[[np.ndarray, Any, int, Range], Row]
    total: Callable[[list[Row]], dict[str, float]]
    score: str
    dense: bool
    label_type: torch.dtype


TASKS: dict[str, Task] = {
    "classify": Task(class_loss, class_answer, class_row, accuracy, "accuracy", False, torch.int64),
    "segment": Task(segment_loss, segment_answer, segment_row, mean_iou, "miou", True, torch.int64),
    "depth": Task(depth_loss, depth_answer, depth_row, mean_rows, "rmse", True, torch.float32),
}
