"""I-JEPA's blocks: what is to be predicted of a picture, and what may be seen of it (Assran et al. 2023, section 3).

G pictures of one optimiser step, M target blocks of P patches each, K patches of context, h x w the patch grid.

One size of target and one of context are drawn for a step, so that tensors have one shape, and places for each picture:

    target    area U(0.15, 0.2) of the grid, height / width U(0.75, 1.5), anywhere; targets may overlap
    context   a square of area U(0.85, 1.0), less all patches of the picture's targets

Reference: ijepa/src/masks/multiblock.py, which draws area and aspect from one random number, keeps every block off the
last row and column of its places, and lets targets into a context that gets too small; the paper has none of these.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Grid = tuple[int, int]  # rows and columns of patches
TRIES = 20  # draws for a picture of whose context too little is left


class Blocks(NamedTuple):
    """Numbers of patches in raster order, ascending."""

    targets: NDArray[np.int64]
    """[G, M, P]"""
    context: NDArray[np.int64]
    """[G, K]"""


def draw_blocks(
    rng: Generator,
    grid: Grid,
    pictures: int,
    targets: int = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    least: int = 10,
) -> Blocks:
    """The blocks of the pictures of one step.

    A picture with fewer than `least` patches of context is drawn again, up to TRIES times. All then keep as many as the
    poorest one has, chosen at random. Raises ValueError where a context has nothing left.
    """
    target, context = block_size(rng, grid, target_scale, target_aspect), block_size(rng, grid, context_scale)

    def draw(count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        blocks = place_blocks(rng, grid, target, (count, targets))
        return blocks, place_blocks(rng, grid, context, (count,)) & ~blocks.any(1)

    blocks, seen = draw(pictures)
    for _ in range(TRIES):
        short = np.flatnonzero(seen.sum(1) < least)
        if not len(short):
            break
        others, left = draw(len(short))
        better = left.sum(1) > seen[short].sum(1)
        blocks[short[better]], seen[short[better]] = others[better], left[better]
    count = int(seen.sum(1).min())
    if not count:
        raise ValueError(f"{targets} targets of {target} leave nothing of a context of {context} patches in {grid}")
    chosen = np.where(seen, rng.random(seen.shape), 2.0).argsort(1)[:, :count]
    return Blocks(np.nonzero(blocks)[-1].reshape(pictures, targets, -1), np.sort(chosen, 1))


def block_size(
    rng: Generator, grid: Grid, scale: tuple[float, float], aspect: tuple[float, float] = (1.0, 1.0)
) -> tuple[int, int]:
    """Rows and columns of a block: area and height / width uniform, rounded to whole patches of the grid."""
    area = int(grid[0] * grid[1] * rng.uniform(*scale))
    ratio = rng.uniform(*aspect)
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(max(height, 1), grid[0]), min(max(width, 1), grid[1])


def place_blocks(rng: Generator, grid: Grid, size: tuple[int, int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Blocks of one size at places of their own: bool [*shape, h w], True inside."""
    sides = []
    for length, side in zip(grid, size, strict=True):
        start = rng.integers(length - side + 1, size=(*shape, 1))
        place = np.arange(length)
        sides.append((start <= place) & (place < start + side))
    rows, columns = sides
    found: NDArray[np.bool_] = (rows[..., :, None] & columns[..., None, :]).reshape(*shape, -1)
    return found
