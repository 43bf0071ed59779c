"""How good is a map or a box as an answer to "where is it"?

Legend: Q phrases, R regions, h x w patch grid; boxes (x0, y0, x1, y1) in pixels, x1 and y1 excluded.

A phrase with several true boxes is answered by any of them; `ground(truth="merged")` leaves one box around them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dino_tower.eval.boxes import box_iou, component_at
from dino_tower.eval.grounding.grounded import Grounded, Query
from dino_tower.eval.grounding.regions import centres, coverage

POINTING, ENERGY, AT_HALF = "pointing", "energy", "acc@0.5"
MAP_METRICS = (POINTING, ENERGY, AT_HALF)
LEVEL = 0.5  # of a map's maximum: where its box ends
SPREAD = 0.25  # deviation of the centre prior, of either side

Values = dict[str, np.ndarray]


def judge_maps(maps: Tensor, picture: Grounded) -> Values:
    """Maps [Q, h, w], each summing to 1, of the picture's phrases -> {metric: [Q]}.

    pointing: does the centre of the highest patch lie in a true box, 0 pixels tolerance? Of equal ones the share.
    energy: how much of the map lies in the true boxes, a patch counting by the share of it that one of them covers.
    acc@0.5: does the map's box (`map_box`) overlap a true box by 0.5 or more (intersection over union)?
    """
    maps = maps.cpu().double()
    grid = (maps.shape[1], maps.shape[2])
    points, covered = centres(grid, picture.size), coverage(picture.regions, picture.size, grid)
    found = []
    for one, query in zip(maps, picture.queries, strict=True):
        truth, energy = list(query.truth), covered[list(query.truth)].amax(0)
        highest = points[one == one.max()]
        inside = _holds(picture.regions[truth], highest).double().mean()
        found.append(
            (float(inside), float((one * energy).sum()), _overlaps(map_box(one, picture.size), picture, truth))
        )
    return _values(found)


def map_box(one: Tensor, size: tuple[int, int], level: float = LEVEL) -> Tensor:
    """The box of a map [h, w] in a picture of (width, height) pixels: [4] float64.

    patches of at least `level` times the maximum; of these the 4-connected part that holds the highest patch (the
    first of equals); the smallest box around its patches
    """
    part = component_at(one >= level * one.max(), int(one.argmax()))
    rows, columns = part.any(1).nonzero()[:, 0], part.any(0).nonzero()[:, 0]
    corners = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).double().cpu()
    step = torch.tensor([size[0] / one.shape[1], size[1] / one.shape[0]], dtype=torch.float64)
    return corners * step.repeat(2)


def judge_boxes(boxes: Sequence[int], picture: Grounded) -> Values:
    """An answer that is one of the regions, one a phrase: it points at its centre and spreads its energy evenly."""
    found = []
    for place, query in zip(boxes, picture.queries, strict=True):
        answer, truth = picture.regions[place], list(query.truth)
        middle = (answer[:2] + answer[2:]) / 2
        inside = bool(_holds(picture.regions[truth], middle[None])[0])
        low = torch.maximum(answer[:2], picture.regions[truth, :2])
        high = torch.minimum(answer[2:], picture.regions[truth, 2:])
        shared = (high - low).clamp(min=0).prod(1).max() / (answer[2:] - answer[:2]).prod()
        found.append((float(inside), float(shared), _overlaps(answer, picture, truth)))
    return _values(found)


def centre_map(grid: tuple[int, int]) -> Tensor:
    """The centre prior: a Gaussian about the middle, its deviation a quarter of either side, [h, w] summing to 1."""
    offset = centres(grid, (1, 1)) - 0.5
    bell = torch.exp(-(offset / SPREAD).square().sum(-1) / 2)
    return bell / bell.sum()


def centre_scores(picture: Grounded) -> Tensor:
    """How near the middle of the picture each region's centre is, in shares of its sides: [R], higher is nearer."""
    size = torch.tensor(picture.size, dtype=torch.float64)
    return -((picture.regions[:, :2] + picture.regions[:, 2:]) / 2 / size - 0.5).norm(dim=1)


def area_scores(picture: Grounded) -> Tensor:
    """The area of each region in pixels [R]."""
    return (picture.regions[:, 2:] - picture.regions[:, :2]).prod(1)


def largest(query: Query, picture: Grounded) -> int:
    """The largest region that the phrase may mean."""
    area = area_scores(picture)
    return max(query.pool, key=lambda place: float(area[place]))


def _holds(boxes: Tensor, points: Tensor) -> Tensor:
    """Is each point [N, 2] in any of the boxes [T, 4]? -> bool [N]."""
    low, high = points[:, None] >= boxes[None, :, :2], points[:, None] < boxes[None, :, 2:]
    return (low & high).all(-1).any(1)


def _overlaps(box: Tensor, picture: Grounded, truth: list[int]) -> float:
    return float((box_iou(box, picture.regions[truth]) >= 0.5).any())


def _values(found: list[tuple[float, float, float]]) -> Values:
    table = np.array(found, dtype=np.float64).reshape(-1, 3)
    return {name: table[:, i] for i, name in enumerate(MAP_METRICS)}
