"""Feature health: artefacts, how much of a patch is only its place, effective rank, and what a shift changes.

Nothing here says that a tower is good. It says what to expect of it, and explains bad numbers elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.health import outliers, positional_errors, positional_variance, rank_me, shift_consistency
from dino_tower.eval.raw import CELLS, RawPixels
from dino_tower.eval.stats import Parts, of_ratio, of_values
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks.homography import some
from dino_tower.eval.tasks.segmentation import SHOWN, small
from dino_tower.eval.view import View, fingerprint
from dino_tower.pictures import pca_basis, pca_picture

MOST = 100  # pictures
PATCHES = 4096  # that the rank is taken of
COLOURED = 20_000  # patches that the colours of the PCA pictures are fitted on
METRICS = {
    "outliers": Metric("outlier patches", better="lower"),
    "position": Metric("place read from a patch, R²", better="none"),
    "position-variance": Metric("variance that is place", better="none"),
    "rank": Metric("RankMe", "dimensions", "none"),
    "shift": Metric("likeness after a shift", better="higher"),
}


def shown(data: Dataset) -> Dataset:
    """At most MOST pictures."""
    return some(data, MOST)


def too_few(view: View, data: Split) -> str | None:
    """The place is read from pictures that the reader has not seen."""
    return None if len(data.test) >= 4 else f"{len(data.test)} pictures; needs four or more"


def run(view: View, data: Split, seed: int) -> Outcome:
    """All over the patches of the same pictures. Of raw pixels the place itself is left out: what is left is what any
    tower can read from colours, the floor of `position`."""
    pictures = shown(data.test)
    rows = view.rows(pictures)
    width = 3 * CELLS**2 if isinstance(view.tower, RawPixels) else rows.width
    patches = rows.stack(range(len(rows)))[..., :width]
    h, w = patches.shape[1:3]
    by = (max(1, round(h / 8)), max(1, round(w / 8)))
    moved = view.rows(shifted(pictures, by, (h, w), view.tower.patch))
    alike = [shift_consistency(patches[i : i + 1], moved[i][None, ..., :width], by) for i in range(len(patches))]
    parts = {
        "outliers": of_values(outliers(patches).per_image),
        "position": place_read(patches),
        "position-variance": of_all(positional_variance(patches), len(patches)),
        "rank": of_all(rank_me(rows.sample(PATCHES)[:, :width]), len(patches)),
        "shift": of_values(torch.cat(alike)),
    }
    ids = [item.id for item in pictures]
    basis = pca_basis(rows.sample(COLOURED)[:, :width])
    kept = set(kept_ids(ids))
    drawn = {item.id: _drawn(item, pca_picture(patches[i], basis, SHOWN))
              for i, item in enumerate(pictures) if item.id in kept}  # fmt: skip
    return Outcome(parts, ids, pictures=drawn)


def place_read(patches: Tensor) -> Parts:
    """R^2 of (y, x), each half of the pictures [B, h, w, D] read by a linear map that was fitted on the other half."""
    over, under = np.zeros((len(patches), 2)), np.zeros((len(patches), 2))
    for half in (0, 1):
        error, spread = positional_errors(patches[1 - half :: 2], patches[half::2])
        over[half::2], under[half::2] = (spread - error).numpy(), spread.numpy()
    return of_ratio(over, under)


def of_all(value: float, units: int) -> Parts:
    """A number of the whole set, to which no picture adds a share of its own: the first unit carries it, and there is
    no interval."""
    found = np.zeros(units)
    found[0] = 1
    return of_ratio(found * value, found)


def shifted(data: Dataset, by: tuple[int, int], grid: tuple[int, int], patch: int) -> Dataset:
    """The pictures as the tower sees them, moved down and right by whole patches; what leaves comes in on the other
    side, so that nothing but the places changes."""
    size = (grid[0] * patch, grid[1] * patch)
    move = (by[0] * patch, by[1] * patch)
    name = f"{data.split}, {size[0]} x {size[1]} moved by {move[0]}, {move[1]}, {fingerprint(data)[:16]}"
    items = [Item(item.id, partial(_moved, item, size, move)) for item in data]
    return replace(data, split=name, items=items, has=frozenset(), whole=None, places=())


def _moved(item: Item, size: tuple[int, int], move: tuple[int, int]) -> Image.Image:
    picture = item.image().resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return Image.fromarray(np.roll(np.asarray(picture), move, (0, 1)))


def _drawn(item: Item, colours: Image.Image) -> Image.Image:
    """In the picture's own shape."""
    return colours.resize(small(item.image()).size, Image.Resampling.NEAREST)


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The picture; there is no truth beside it."""
    wanted = set(ids)
    return {item.id: (small(item.image()), small(item.image())) for item in shown(data.test) if item.id in wanted}


HEALTH = Task(
    "health", "feature health", METRICS, run, fits=too_few, truth=truth, shown=shown,
)  # fmt: skip
