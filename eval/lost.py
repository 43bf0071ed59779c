"""LOST: one object an image from the patches that are alike to fewest others.

Legend: h x w patch grid, N = h w patches, D features (the KEYS of the last block, before attention, not normalised).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.boxes import box_around, component_at


class Found(NamedTuple):
    """The discovered object."""

    box: Tensor  # [4] pixels
    mask: Tensor  # [h, w] bool: the connected part that holds the seed
    seed: int  # the patch it grew from, row-major
    degree: Tensor  # [h, w]: how many other patches a patch is alike to


def lost(keys: Tensor, patch: int, size: tuple[int, int], k: int = 100) -> Found:
    """Find one object (Simeoni et al. 2021, `object_discovery.lost`).

        A = K K^T;  degree_i = number of j != i with A_ij > 0;  seed = the patch of lowest degree
        similar = those of the k lowest degrees with A_seed,j > 0;  mask = sum of A over similar rows > 0

    keys [h, w, D]; patch: its pixels; size: (height, width) of the image before padding.
    An object covers less than half of an image, so its patches agree with fewer than the background's do.
    """
    if keys.ndim != 3:
        raise ConfigError(f"LOST: keys of shape {tuple(keys.shape)}; need [h, w, D]")
    rows = keys.flatten(0, 1).float()
    alike = rows @ rows.T
    positive = alike > 0
    degree = positive.sum(1) - positive.diagonal().int()
    # Degrees tie often. The published seed is what torch's unstable sort of -degree puts first: kept, to agree with it.
    order = (-degree.float()).argsort(descending=True)
    seed = int(order[0])
    similar = order[:k][alike[seed, order[:k]] > 0]
    mask = (alike[similar].sum(0) > 0).reshape(keys.shape[:2])
    own = component_at(mask, seed)
    return Found(box_around(own, patch, size), own, seed, degree.reshape(keys.shape[:2]))
