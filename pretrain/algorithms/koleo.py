"""KoLeo: a batch's features are pushed away from their nearest neighbours, so that they spread over the sphere.

B features of D numbers. Reference: dinov2/loss/koleo_loss.py (arXiv 1806.03198; DINOv2, section 4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8
CHUNK_PRODUCTS = 2**20  # inner products alive at a time: 4 MiB


def koleo(x: Tensor) -> Tensor:
    """Features [B, D] of one process, normalised here, to the scalar loss, fp32 under autocast too.

    With x_b the unit vectors, e = EPSILON: -mean_b log(|x_b - x_nearest(b) + e| + e). The nearest is found in chunks of
    rows: no B x B matrix is stored, and no gradient goes through the choice. A batch holds neighbours by definition:
    processes are not joined. Raises ValueError for fewer than two rows.
    """
    if len(x) < 2:
        raise ValueError(f"KoLeo of {len(x)} feature: it needs a batch of 2 or more on each process")
    with torch.autocast(x.device.type, enabled=False):
        x = F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1, eps=EPSILON)
        distance = F.pairwise_distance(x, x[nearest(x)], eps=EPSILON)
        return -(distance + EPSILON).log().mean()


@torch.no_grad()
def nearest(x: Tensor) -> Tensor:
    """Unit vectors [B, D] to the index [B] of each one's nearest other."""
    size = max(1, CHUNK_PRODUCTS // len(x))
    found = []
    for start in range(0, len(x), size):
        products = x[start : start + size] @ x.T
        products.diagonal(start).fill_(-2)  # itself; the published -1 ties with an opposite vector
        found.append(products.argmax(1))
    return torch.cat(found)
