"""Semantic correspondence (SPair-71k): the patch most like the one under a keypoint, in a picture of another thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.eval.correspondence import PairCounts, correct_points, counted, match_points
from dino_tower.eval.datasets.base import Dataset, Item, Pair
from dino_tower.eval.stats import Parts
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks.drawing import matches
from dino_tower.eval.tasks.segmentation import small
from dino_tower.eval.view import View

ALPHAS = (0.1, 0.05, 0.01)  # of the longer side of the object's box in the second picture
CELL = 2  # pixels that a patch is taken to have along a side: any even number gives the same
METRICS = {
    f"{name}@{alpha}": Metric(f"PCK@{alpha} {words}")
    for alpha in ALPHAS
    for name, words in (("pck", "per point"), ("pck-image", "per image"))
}


def pictures_of(data: Dataset) -> Dataset:
    """Every picture once: a thousand pairs are made of a few pictures."""
    found = {picture_key(item): item for pair in data for item in (pair, _pair(pair).target)}
    return replace(data, split=f"{data.split}, pictures", items=[replace(item, id=key) for key, item in found.items()],
                   has=frozenset(), whole=None, places=())  # fmt: skip


def picture_key(item: Item) -> str:
    """What two items with the same picture have in common."""
    return str(item.payload) if isinstance(item.payload, (str, Path)) else item.id


def _pair(item: Item) -> Pair:
    assert item.pair is not None, "a set of pairs has one in every item"
    return item.pair


def run(view: View, data: Split, seed: int) -> Outcome:
    """Pictures in their own shape; a point is found where the centre of the nearest patch by cosine lies."""
    pictures = pictures_of(data.test)
    rows, place = view.rows(pictures), {item.id: i for i, item in enumerate(pictures)}
    found = []
    for item in data.test:
        pair = _pair(item)
        first, second = rows[place[picture_key(item)]], rows[place[picture_key(pair.target)]]
        seen = _scaled(pair.points, item.size(), _size(first))
        at = match_points(first, second, seen + 0.5, CELL)  # patches are counted from a pixel's corner
        found.append(_scaled(at.numpy(), _size(second), pair.target.size()))
    kept = set(kept_ids([item.id for item in data.test]))
    shown = {item.id: _drawn(item, at) for item, at in zip(data.test, found, strict=True) if item.id in kept}
    return Outcome(judged(data, found), [item.id for item in data.test], pictures=shown)


def _size(patches: Tensor) -> tuple[int, int]:
    """(width, height) of [h, w, D]."""
    return CELL * patches.shape[1], CELL * patches.shape[0]


def _scaled(points: np.ndarray, size: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Points [K, 2] of a picture (width, height) after it was resized: the middle of the first pixel is (0, 0)."""
    scale = np.array(target, np.float64) / np.array(size, np.float64)
    return torch.from_numpy((np.asarray(points, np.float64) + 0.5) * scale - 0.5)


def _hits(item: Item, found: Tensor, alpha: float) -> Tensor:
    pair = _pair(item)
    left, top, right, bottom = pair.target_box
    return correct_points(found, torch.from_numpy(pair.target_points), max(right - left, bottom - top), alpha)


def judged(data: Split, found: Sequence[Tensor]) -> dict[str, Parts]:
    """PCK of points found [K, 2] in each pair, in pixels of the second picture."""
    parts = {}
    for alpha in ALPHAS:
        counts: PairCounts = counted([_hits(item, at, alpha) for item, at in zip(data.test, found, strict=True)])
        parts[f"pck@{alpha}"], parts[f"pck-image@{alpha}"] = counts.per_point, counts.per_image
    return parts


def same_place(data: Split) -> Mapping[str, Parts]:
    """Every point is where it was in the first picture, as a share of its width and height."""
    return judged(data, [_scaled(_pair(item).points, item.size(), _pair(item).target.size()) for item in data.test])


def _drawn(item: Item, found: Tensor) -> Image.Image:
    pair = _pair(item)
    good = _hits(item, found, ALPHAS[0]).tolist()
    return matches(item.image(), pair.target.image(), pair.points / item.size(),
                   found.numpy() / pair.target.size(), good)  # fmt: skip


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The first picture, and the true lines."""
    wanted = set(ids)
    return {
        item.id: (small(item.image()), _drawn(item, torch.from_numpy(_pair(item).target_points)))
        for item in data.test
        if item.id in wanted
    }


CORRESPONDENCE = Task(
    "correspondence", "semantic correspondence", METRICS, run,
    geometry="native", floor=same_place, truth=truth, shown=pictures_of,
)  # fmt: skip
