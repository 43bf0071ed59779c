"""Saliency: the one thing that stands out, as TokenCut cuts it from the keys of the last block."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from PIL import Image

from dino_tower.eval.datasets.base import VOID
from dino_tower.eval.saliency import Saliency, saliency
from dino_tower.eval.stats import Parts, of_values
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks import segmentation
from dino_tower.eval.tasks.discovery import no_self_attention
from dino_tower.eval.tokencut import tokencut
from dino_tower.eval.view import View

METRICS = {"iou": Metric("IoU"), "accuracy": Metric("accuracy"), "max-f": Metric("max F")}


def run(view: View, data: Split, seed: int) -> Outcome:
    """The connected part of TokenCut's foreground that holds its seed, at the mask's full size (nearest)."""
    rows = view.keys(data.test)
    ids = [item.id for item in data.test]
    kept = set(kept_ids(ids))
    scores: list[Saliency] = []
    pictures: dict[str, Image.Image] = {}
    for place, item in enumerate(data.test):
        truth = item.mask()
        cut = tokencut(rows[place], 1, rows.grid(place)).mask.numpy().astype(np.uint8)
        found = cv2.resize(cut, truth.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        scores.append(_scored(found, truth))
        if item.id in kept:
            pictures[item.id] = segmentation.drawn(found)
    return Outcome(_parts(scores), ids, pictures=pictures)


def _scored(found: np.ndarray, truth: np.ndarray) -> Saliency:
    """Void pixels do not count: taken for background they would reward a mask that is too small."""
    counted = truth != VOID
    if not counted.any():
        nothing = torch.full((1,), torch.nan, dtype=torch.float64)
        return Saliency(nothing, nothing, nothing[:, None])
    return saliency(*(torch.from_numpy(one[counted].astype(np.float32))[None, None] for one in (found, truth)))


def _parts(scores: list[Saliency]) -> dict[str, Parts]:
    # A mask of 0 and 1 has one F: the same at every threshold.
    f = torch.stack([one.f[0, 0] for one in scores])
    iou, accuracy = (torch.cat(column) for column in list(zip(*scores, strict=True))[:2])
    return {"iou": of_values(iou), "accuracy": of_values(accuracy), "max-f": of_values(f)}


def foreground(data: Split) -> Mapping[str, Parts]:
    """Everything is object."""
    masks = [item.mask() for item in data.test]
    return _parts([_scored(np.ones_like(mask), mask) for mask in masks])


def fits(view: View, data: Split) -> str | None:
    """Background and object, and keys."""
    if len(data.test.regions) != 2:
        return f"masks with {len(data.test.regions)} classes; saliency takes two, background and object"
    return no_self_attention(view, data)


SALIENCY = Task(
    "saliency", "saliency", METRICS, run,
    features=("keys",), geometry="native", fits=fits, floor=foreground, truth=segmentation.truth,
)  # fmt: skip
