"""Patch features small enough to travel inside a page, and the error that this costs.

Legend: n = patches of all pictures together, D = feature width, k = numbers kept of each patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # k is the first of these that is exact enough
WANTED = 0.02  # largest difference of a cosine that nobody sees in a map
MOST_BYTES = 4_500_000  # of all features together; base64 makes 6 MB of it
SAMPLE = 512  # patches whose cosines decide k
CHUNK = 1024


class Packed(NamedTuple):
    """8-bit features. Those of a patch are codes * scales; the cosine of two patches is the cosine of these."""

    codes: list[np.ndarray]  # int8 [h, w, k], one for each picture
    scales: np.ndarray  # float32 [k]
    largest: float  # difference of a cosine to that of the full features, over all pairs of patches
    mean: float
    pairs: int


def pack(patches: Sequence[Tensor], wanted: float = WANTED, most_bytes: int = MOST_BYTES) -> Packed:
    """Compress the patches [h, w, D] of several pictures so that cosines survive.

        unit = patch / |patch|;  axes = leading eigenvectors of unit^T unit;  code = round(unit @ axes / scale)

    The axes keep inner products, not variances: nothing is subtracted. Each axis has its own scale, its largest value
    being 127, so that the many small axes are not rounded away. k is as small as `wanted` (the largest difference over
    a sample of patches) allows, or what fits into `most_bytes`; the differences reported are over all pairs.
    """
    unit = torch.cat([F.normalize(part.detach().float().cpu().flatten(0, -2), dim=-1) for part in patches])
    n, width = unit.shape
    _, vectors = torch.linalg.eigh((unit.T @ unit).double())
    turned = unit @ vectors.flip(1).float()
    room = max(WIDTHS[0], most_bytes // n)
    widths = sorted({k for k in WIDTHS if k < min(width, room)} | {min(width, room)})
    some = torch.arange(0, n, max(1, n // SAMPLE))
    for k in widths:
        codes, scales = _rounded(turned[:, :k])
        if k == widths[-1] or _difference(unit, _unit(codes, scales), some)[0] <= wanted:
            break
    largest, mean, pairs = _difference(unit, _unit(codes, scales))
    grids = [tuple(part.shape[:-1]) for part in patches]
    parts = codes.split([h * w for h, w in grids])
    shaped = [part.reshape(*grid, -1).numpy() for part, grid in zip(parts, grids, strict=True)]
    return Packed(shaped, scales.numpy(), largest, mean, pairs)


def unpack(packed: Packed) -> list[Tensor]:
    """The unit features [h, w, k] that a page computes with."""
    scales = torch.from_numpy(packed.scales)
    return [_unit(torch.from_numpy(codes), scales) for codes in packed.codes]


def _rounded(turned: Tensor) -> tuple[Tensor, Tensor]:
    scales = turned.abs().amax(0).clamp(min=1e-12) / 127
    return (turned / scales).round().clamp(-127, 127).to(torch.int8), scales


def _unit(codes: Tensor, scales: Tensor) -> Tensor:
    return F.normalize(codes.float() * scales, dim=-1)


def _difference(full: Tensor, small: Tensor, rows: Tensor | None = None) -> tuple[float, float, int]:
    """Largest and mean |cosine - cosine| of unit features [n, D] and [n, k], and the number of pairs: every pair of two
    patches once, or `rows` against all."""
    largest, total, count = 0.0, 0.0, 0
    for start in range(0, len(full) if rows is None else len(rows), CHUNK):
        chosen, against = (slice(start, start + CHUNK), start) if rows is None else (rows[start : start + CHUNK], 0)
        gap = (full[chosen] @ full[against:].T).sub_(small[chosen] @ small[against:].T).abs_()
        count += gap.numel()
        if rows is None:  # what lies left of the chunk was compared before; within it, only one side of the diagonal
            gap[:, : len(gap)].triu_(1)
            count -= len(gap) * (len(gap) + 1) // 2
        largest, total = max(largest, float(gap.max())), total + float(gap.sum(dtype=torch.float64))
    return largest, total / max(count, 1), count
