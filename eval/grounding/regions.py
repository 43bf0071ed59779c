"""Boxes on a patch grid, and tokens that know nothing but their place.

Legend: h x w patch grid, D features, R regions (x0, y0, x1, y1) in pixels of a picture of (width, height).
The whole picture lies on the grid: towers resize, they neither crop nor pad.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

WAVES = 8


class Features(Protocol):
    """The patches [h, w, D] of each picture of a set: a list, [B, h, w, D], or rows that are read when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Tensor: ...


def coverage(boxes: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Share of each patch that lies inside each box: boxes [R, 4] -> [R, h, w] in 0..1.

    size: (width, height) of the picture in pixels; grid: (h, w).
    """
    across = _overlap(boxes[:, 0] / size[0], boxes[:, 2] / size[0], grid[1])
    down = _overlap(boxes[:, 1] / size[1], boxes[:, 3] / size[1], grid[0])
    return down[:, :, None] * across[:, None, :]


def _overlap(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Shares [R, cells] of unit cells inside low..high, which are shares of the whole side."""
    edge = torch.arange(cells, dtype=low.dtype, device=low.device)
    inside = torch.minimum(high[:, None] * cells, edge + 1) - torch.maximum(low[:, None] * cells, edge)
    return inside.clamp(min=0)


def box_means(features: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean of the patches under each box, weighted by how much of each it covers: features [h, w, D] -> [R, D]."""
    weight = coverage(boxes, size, (features.shape[0], features.shape[1])).flatten(1).to(features.device, torch.float32)
    return (weight @ features.float().flatten(0, 1)) / weight.sum(1, keepdim=True)


def centres(grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Centres (x, y) of the patches in pixels, [h, w, 2] float64."""
    rows = (torch.arange(grid[0], dtype=torch.float64) + 0.5) * size[1] / grid[0]
    columns = (torch.arange(grid[1], dtype=torch.float64) + 0.5) * size[0] / grid[1]
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)


def position_tokens(grid: tuple[int, int]) -> Tensor:
    """The control without a picture: cosines of the place, [h, w, 64], alike for every picture of this grid.

        token[i, j] = cos(pi k y) cos(pi l x),  k, l = 0..7,  x and y the patch's centre in 0..1

    A linear map of them is any smooth function of the place, hence any prior over places.
    """
    x, y = ((torch.arange(n) + 0.5) / n for n in (grid[1], grid[0]))
    waves = torch.arange(WAVES)
    along, down = (torch.cos(math.pi * place[:, None] * waves) for place in (x, y))
    return torch.einsum("ik,jl->ijkl", down, along).flatten(2)
