"""Which patches the student does not see: iBOT's masks of one image, DINOv2's of one batch.

A mask is bool [h, w] over the patch grid, True where the patch is hidden. All chance comes from the Generator that is
given, so that a mask depends on its seed alone.
References: ibot/loader.py::ImageFolderMask (iBOT, section 4.1); dinov2/data/masking.py::MaskingGenerator and
dinov2/data/collate.py (DINOv2, appendix B); blocks as in BEiT (arXiv 2106.08254, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Grid = tuple[int, int]  # rows and columns of patches

ASPECT = (0.3, 1 / 0.3)  # height / width of a block, log-uniform
ATTEMPTS = 10  # draws for one block before the mask stays as it is


def ibot_mask(
    rng: Generator,
    grid: Grid,
    shape: str = "block",
    ratios: Sequence[float] = (0.0, 0.3),
    spreads: Sequence[float] = (0.0, 0.2),
) -> Mask:
    """The mask of one global view [h, w]: one of `ratios` by chance, within its spread, in blocks or at random.

    By default half of the views have no mask and the others between 0.1 and 0.5 of their patches.
    Raises ValueError for an unknown shape, and for a ratio that its spread takes out of 0 to 1.
    """
    if shape not in SHAPES:
        raise ValueError(f"mask shape {shape!r} is none of: {', '.join(SHAPES)}")
    if len(ratios) != len(spreads) or not ratios:
        raise ValueError(f"{len(ratios)} mask ratios and {len(spreads)} spreads: give one spread for each ratio")
    for ratio, spread in zip(ratios, spreads, strict=True):
        if not 0 <= spread <= min(ratio, 1 - ratio):
            raise ValueError(f"mask ratio {ratio} with spread {spread}: ratio +- spread must lie in 0..1")
    one = int(rng.integers(len(ratios)))
    ratio = ratios[one] + spreads[one] * rng.uniform(-1, 1)
    return SHAPES[shape](rng, grid, ratio * grid[0] * grid[1])


def ibot_blocks(rng: Generator, grid: Grid, count: float) -> Mask:
    """Up to `count` patches in blocks of about a ninth of the grid or more, then whatever fits."""
    return block_mask(rng, grid, count, smallest=(min(grid) // 3) ** 2)


def random_mask(rng: Generator, grid: Grid, count: float) -> Mask:
    """Exactly int(count) patches, each equally likely."""
    mask = np.zeros(grid[0] * grid[1], bool)
    mask[: int(count)] = True
    rng.shuffle(mask)
    return mask.reshape(grid)


SHAPES: dict[str, Callable[[Generator, Grid, float], Mask]] = {"block": ibot_blocks, "random": random_mask}


def strata(rng: Generator, images: int, share: float, ratios: tuple[float, float]) -> NDArray[np.float64]:
    """The least and the most that each image of a batch hides [images, 2], in random order; (0, 0): nothing.

    int(images * share) of them are masked. The range of ratios is cut into that many equal parts and each masked image
    gets its own, so that every batch hides about the same number of patches (DINOv2). Raises ValueError for a share or
    ratios out of 0 to 1.
    """
    if not 0 <= share <= 1 or not 0 <= ratios[0] <= ratios[1] <= 1:
        raise ValueError(f"share of masked images {share}, mask ratios {ratios}: all in 0..1, the lower ratio first")
    masked = int(images * share)
    edges = np.linspace(*ratios, masked + 1)
    bounds = np.zeros((images, 2))
    bounds[:masked] = np.stack([edges[:-1], edges[1:]], axis=1)
    rng.shuffle(bounds)
    return bounds


def stratum_mask(rng: Generator, grid: Grid, least: float, most: float, smallest: int = 4) -> Mask:
    """The mask [h, w] of an image that hides a share between the two; no block is larger than half of the grid."""
    patches = grid[0] * grid[1]
    return block_mask(rng, grid, int(patches * rng.uniform(least, most)), smallest, largest=patches / 2)


def block_mask(rng: Generator, grid: Grid, count: float, smallest: float, largest: float = math.inf) -> Mask:
    """Blocks until `count` patches are hidden; never more, and fewer where ATTEMPTS draws in a row do not fit.

    A block's area lies between `smallest` and what is still to be hidden, `largest` at most. Blocks may overlap; one
    that hides nothing new, or too much, is drawn again.
    """
    mask = np.zeros(grid, bool)
    hidden = 0
    while hidden < count:
        room = min(count - hidden, largest)
        for _ in range(ATTEMPTS):
            block = draw_block(rng, grid, smallest, room)
            if block is None:
                continue
            new = int((~mask[block]).sum())
            if 0 < new <= room:
                mask[block] = True
                hidden += new
                break
        else:
            break
    return mask


def draw_block(rng: Generator, grid: Grid, smallest: float, largest: float) -> tuple[slice, slice] | None:
    """One rectangle of rows and columns, or None if it would reach across the grid.

    Area uniform between the two (in either order: towards the end of a mask less than `smallest` is left), aspect
    log-uniform in ASPECT, both before rounding to whole patches, place uniform.
    """
    area = smallest + (largest - smallest) * rng.random()
    aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if height >= grid[0] or width >= grid[1]:
        return None
    top, left = int(rng.integers(grid[0] - height + 1)), int(rng.integers(grid[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)
