"""Geometric correspondence without labels: a picture and a warped copy of itself, every patch to be found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.eval.correspondence import counted, homography_errors, match_points, patch_centres
from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.stats import Parts
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks.correspondence import CELL
from dino_tower.eval.tasks.drawing import matches
from dino_tower.eval.tasks.segmentation import small
from dino_tower.eval.view import View, fingerprint

MOST = 200  # pictures
ALPHAS = (0.05, 0.1)  # of the picture's side
METRICS = {
    f"{name}@{alpha}": Metric(f"PCK@{alpha} {words}")
    for alpha in ALPHAS
    for name, words in (("pck", "per patch"), ("pck-image", "per image"))
}
FLOOR_GRID = 32  # points along a side


def some(data: Dataset, most: int = MOST) -> Dataset:
    """The data itself where it is small, else `most` pictures, evenly spread."""
    if len(data) <= most:
        return data
    places = np.unique(np.linspace(0, len(data) - 1, most).astype(int)).tolist()
    items = [data[place] for place in places]
    return replace(data, split=f"{data.split}, {most} pictures", items=items, whole=None, places=())


def warp_of(number: int) -> np.ndarray:
    """[3, 3] from the unit square of a picture to that of its copy: a quadrilateral inside of the picture, turned by up
    to 25 degrees, becomes the whole copy, so that nothing has to be made up at its borders."""
    rng = np.random.default_rng(number)
    angle = np.deg2rad(rng.uniform(-25, 25))
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) + rng.uniform(-0.1, 0.1, (4, 2))
    corners = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    low, extent = corners.min(0), np.ptp(corners, axis=0)
    share = rng.uniform(0.7, 0.95, 2)
    inside = (corners - low) / extent * share + rng.uniform(0, 1, 2) * (1 - share)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    return cv2.getPerspectiveTransform(inside.astype(np.float32), square)


def scaled(warp: np.ndarray, width: int, height: int) -> np.ndarray:
    """The same warp between pictures of (width, height) pixels whose first pixel's middle is (0, 0)."""
    unit = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height], [0, 0, 1]])
    return np.linalg.inv(unit) @ warp @ unit


def warped(data: Dataset) -> Dataset:
    """The copies: pictures of the same ids and sizes, made when they are asked for."""
    pictures = some(data)
    items = [Item(item.id, partial(_warped, item, number)) for number, item in enumerate(pictures)]
    return replace(pictures, split=f"{pictures.split}, warped, {fingerprint(pictures)[:16]}", items=items,
                   has=frozenset(), whole=None, places=())  # fmt: skip


def _warped(item: Item, number: int) -> Image.Image:
    picture = np.asarray(item.image())
    height, width = picture.shape[:2]
    matrix = scaled(warp_of(number), width, height)
    return Image.fromarray(cv2.warpPerspective(picture, matrix, (width, height), flags=cv2.INTER_LINEAR,
                                               borderMode=cv2.BORDER_REPLICATE))  # fmt: skip


def run(view: View, data: Split, seed: int) -> Outcome:
    """The nearest patch by cosine; found if it lies nearer than a share of the picture's side to where it belongs."""
    pictures = some(data.test)
    rows, copies = view.rows(pictures), view.rows(warped(data.test))
    ids = [item.id for item in pictures]
    kept = set(kept_ids(ids))
    errors, shown = [], {}
    for number, item in enumerate(pictures):
        first, second = rows[number], copies[number]
        h, w = second.shape[:2]
        matrix = torch.from_numpy(scaled(warp_of(number), CELL * w, CELL * h))
        wrong = homography_errors(first, second, matrix, CELL, (CELL * h, CELL * w))
        errors.append(wrong / (CELL * max(h, w)))
        if item.id in kept:
            points = patch_centres((h, w), CELL)[_spread(h, w)]
            found = match_points(first, second, points, CELL)
            shown[item.id] = _drawn(item, number, shares(points, h, w), shares(found, h, w))
    return Outcome(judged(errors), ids, pictures=shown)


def shares(points: Tensor, h: int, w: int) -> np.ndarray:
    """Points [K, 2] on a grid of h x w patches as shares of the picture's width and height."""
    return (points.double().numpy() + 0.5) / (CELL * w, CELL * h)


def judged(errors: Sequence[Tensor]) -> dict[str, Parts]:
    """PCK of distances [K], as shares of the side, in each picture."""
    parts = {}
    for alpha in ALPHAS:
        counts = counted([one < alpha for one in errors])
        parts[f"pck@{alpha}"], parts[f"pck-image@{alpha}"] = counts.per_point, counts.per_image
    return parts


def same_place(data: Split) -> Mapping[str, Parts]:
    """Every patch is where it was: what position alone finds."""
    points = shares(patch_centres((FLOOR_GRID, FLOOR_GRID), CELL), FLOOR_GRID, FLOOR_GRID)
    errors = []
    for number in range(len(some(data.test))):
        moved = _moved(points, number)
        inside = ((moved >= 0) & (moved < 1)).all(1)
        errors.append(torch.from_numpy(np.linalg.norm(points - moved, axis=1)[inside]))
    return judged(errors)


def _moved(points: np.ndarray, number: int) -> np.ndarray:
    return cv2.perspectiveTransform(points[None].astype(np.float64), warp_of(number))[0]


def _spread(h: int, w: int) -> list[int]:
    """Some of the patches of a grid, row-major: every third or so, both ways."""
    step = max(1, round((h * w / 60) ** 0.5))
    return [y * w + x for y in range(step // 2, h, step) for x in range(step // 2, w, step)]


def _drawn(item: Item, number: int, points: np.ndarray, found: np.ndarray) -> Image.Image:
    moved = _moved(points, number)
    inside = ((moved >= 0) & (moved < 1)).all(1)
    good = np.linalg.norm(moved - found, axis=1) < ALPHAS[0]
    return matches(item.image(), _warped(item, number), points[inside], found[inside], good[inside].tolist())


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The picture, and where its patches belong."""
    wanted, found = set(ids), {}
    points = shares(patch_centres((12, 12), CELL)[_spread(12, 12)], 12, 12)
    for number, item in enumerate(some(data.test)):
        if item.id in wanted:
            found[item.id] = (small(item.image()), _drawn(item, number, points, _moved(points, number)))
    return found


HOMOGRAPHY = Task(
    "homography", "geometric correspondence", METRICS, run, floor=same_place, truth=truth, shown=warped,
)  # fmt: skip
