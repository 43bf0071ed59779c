"""Depth: how far is what each patch shows? DINOv2's bins, and a ridge regression that needs no schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.datasets.depth import NYU_CAMERA
from dino_tower.eval.depth import HIGH, LOW, depth_metrics
from dino_tower.eval.depth_head import depth_input
from dino_tower.eval.depth_probe import CELL, RATES, STRENGTHS, chosen_of, fit_bins, fit_log_depth
from dino_tower.eval.stats import Parts, of_values
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks import segmentation
from dino_tower.eval.tasks.segmentation import SHOWN, small
from dino_tower.eval.view import Rows, View
from dino_tower.pictures import colour

METRICS = {
    "rmse": Metric("RMSE, bins", "m", "lower"),
    "linear-rmse": Metric("RMSE, linear", "m", "lower"),
    "abs-rel": Metric("relative error, bins", "%", "lower"),
    "a1": Metric("within 25 %, bins"),
}
PATCHES = 100_000  # trained on at most
REACH, COARSE = 500, (16, 16)  # training pictures, and their grid, that tell how far depth reaches


def run(view: View, data: Split, seed: int) -> Outcome:
    """Patch and class token -> 64 bins, SigLoss + 0.5 gradient loss; rate and strength chosen on a tenth of train.

    Judged at the label's full size, NYUv2 inside the Eigen crop. Pictures are not mirrored at test time.
    """
    train = data.trained()
    rows, vectors = view.rows(train), view.vectors(train)
    places = sampled(rows, train, PATCHES, seed)
    truth, high = torch.stack([small_depth(rows.grid(place), train[place]) for place in places]), reach(train)
    places, truth = labelled(places, truth, (truth > LOW) & (truth <= high), f"{train.name}: depth")
    patches = rows.stack(places)
    features = depth_input(patches, vectors[places])
    bins, rate = chosen_of(RATES, partial(fit_bins, features, truth, high, seed), features, truth, high, seed)
    ridge, strength = chosen_of(
        STRENGTHS, partial(fit_log_depth, patches, truth, high, seed), patches, truth, high, seed
    )
    del patches, features
    seen, whole = view.rows(data.test), view.vectors(data.test)
    ids = [item.id for item in data.test]
    kept = set(kept_ids(ids))
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    pictures: dict[str, Image.Image] = {}
    for place, item in enumerate(data.test):
        true, patch = item.depth(), seen.stack([place])
        found = bins.predict(depth_input(patch, whole[place : place + 1]), (true.shape[0], true.shape[1]))[0, 0]
        line = ridge.predict(patch, (true.shape[0], true.shape[1]))[0, 0]
        _add(values, found, line, item, true, high)
        if item.id in kept:
            pictures[item.id] = drawn(found.numpy(), true)
    chosen = {"learning rate": rate, "strength": strength, "training pictures": len(places)}
    return Outcome({name: of_values(one) for name, one in values.items()}, ids, chosen, pictures)


def _add(values: dict[str, list[float]], bins: Tensor, line: Tensor, item: Item, true: np.ndarray, high: float) -> None:
    crop = item.camera == NYU_CAMERA and true.shape == (480, 640)
    truth = torch.from_numpy(true)[None]
    scores = depth_metrics(bins[None], truth, LOW, high, crop)
    values["linear-rmse"].append(float(depth_metrics(line[None], truth, LOW, high, crop)["rmse"]))
    for name, key in (("rmse", "rmse"), ("abs-rel", "abs_rel"), ("a1", "a1")):
        values[name].append(float(scores[key]))


def sampled(rows: Rows, train: Dataset, most: int, seed: int) -> list[int]:
    """Training pictures with `most` patches at most, drawn by the seed; three at least: one is held out of them."""
    if len(train) < 3:
        raise ConfigError(f"{train.name}: {len(train)} training pictures; one is held out, so that it takes 3 or more")
    return segmentation.sampled(rows, train, most, seed, least=3)


def labelled(places: list[int], truth: Tensor, known: Tensor, what: str) -> tuple[list[int], Tensor]:
    """Those pictures of which something is known; known [B, ...] bool. ConfigError for fewer than three."""
    kept = known.flatten(1).any(1).nonzero()[:, 0]
    if len(kept) < 3:
        raise ConfigError(f"{what} is known in {len(kept)} of {len(places)} training pictures; it takes 3 or more")
    return [places[place] for place in kept.tolist()], truth[kept]


def small_depth(grid: tuple[int, int], item: Item) -> Tensor:
    """[CELL h, CELL w] metres, nearest neighbour: a mean over an edge, or with a hole, is the depth of nothing."""
    h, w = grid
    return torch.from_numpy(cv2.resize(item.depth(), (w * CELL, h * CELL), interpolation=cv2.INTER_NEAREST_EXACT))


def reach(train: Dataset) -> float:
    """The largest depth that counts: NYUv2's 10 m, or what training shows where it reaches farther (streets).

    Looked up on one grid in pictures evenly spread, so that every tower, seed and floor is judged on the same pixels.
    """
    places = np.unique(np.linspace(0, len(train) - 1, min(REACH, len(train))).round().astype(int)).tolist()
    truth = torch.stack([small_depth(COARSE, train[place]) for place in places])
    known = truth[truth > LOW]
    far = float(np.quantile(known.numpy(), 0.99)) if len(known) else 0.0
    return HIGH if far <= HIGH else float(np.ceil(far))


def mean_depth(data: Split) -> Mapping[str, Parts]:
    """Everything is as far as training is on average."""
    train, high = torch.cat([small_depth(COARSE, item).flatten() for item in data.trained()]), reach(data.trained())
    mean = train[(train > LOW) & (train <= high)].mean()
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for item in data.test:
        true = item.depth()
        flat = mean.expand(*true.shape)
        _add(values, flat, flat, item, true, high)
    return {name: of_values(one) for name, one in values.items()}


def drawn(depth: np.ndarray, truth: np.ndarray) -> Image.Image:
    """Near is bright; both on the scale of the truth, so that pictures side by side can be compared. Unknown: black."""
    known = truth[truth > 0]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    light = 1 - (depth - low) / max(high - low, 1e-6)
    pixels = np.where(depth[..., None] > 0, colour(light, "viridis"), 0).astype(np.uint8)
    return at_size(Image.fromarray(pixels))


def at_size(picture: Image.Image) -> Image.Image:
    """SHOWN pixels on the longer side, whatever the label's size; values are not mixed."""
    scale = SHOWN / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST)


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """Picture and depth map."""
    wanted = set(ids)
    return {
        item.id: (small(item.image()), drawn(item.depth(), item.depth())) for item in data.test if item.id in wanted
    }


DEPTH = Task(
    "depth", "depth", METRICS, run,
    features=("rows", "vectors"), trains=True, seeds=True, floor=mean_depth, truth=truth, version=2,
)  # fmt: skip
