"""Which patches of a sample's global views are hidden from the student: masks.py's masks, by the sample's place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dino_tower.pretrain.algorithms.masks import Grid, Mask, ibot_mask, strata, stratum_mask
from dino_tower.pretrain.loading.draws import Place


@dataclass(frozen=True)
class DrawMasks:
    """The masks of a sample's two global views, {"masks": bool [2, h, w]}, by its place in the data alone.

    shape: one of SHAPES, with `ratios` and `spreads` as ibot_mask takes them, or stratified, over all views of an
    optimiser step, with `share` and `bounds` as strata takes them.
    """

    grid: Grid
    shape: str
    ratios: tuple[float, ...]
    spreads: tuple[float, ...]
    share: float
    bounds: tuple[float, float]

    def __call__(self, place: Place) -> dict[str, Mask]:
        rng = place.rng()
        if self.shape == "stratified":
            step = _strata_of_step(place.seed, place.epoch, place.position // place.global_batch, place.global_batch,
                                   self.share, self.bounds)  # fmt: skip
            mine = step[2 * place.slot : 2 * place.slot + 2].tolist()
            return {"masks": np.stack([stratum_mask(rng, self.grid, *stratum) for stratum in mine])}
        return {"masks": np.stack([ibot_mask(rng, self.grid, self.shape, self.ratios, self.spreads) for _ in range(2)])}


@lru_cache(maxsize=2)
def _strata_of_step(
    seed: int, epoch: int, step: int, images: int, share: float, bounds: tuple[float, float]
) -> NDArray[np.float64]:
    first = Place(seed, epoch, 0, 0, step * images, images)
    return strata(first.step_rng(), 2 * images, share, bounds)
