"""Surface normals: which way does what each patch shows face? From depth maps whose camera is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Item
from dino_tower.eval.depth_probe import CELL
from dino_tower.eval.normals import fit_normals, normal_metrics
from dino_tower.eval.stats import Parts, of_values
from dino_tower.eval.surface import normals_of_depth
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks.depth import PATCHES, at_size, labelled, sampled
from dino_tower.eval.tasks.segmentation import small
from dino_tower.eval.view import View

METRICS = {
    "rmse": Metric("RMSE of the angle", "°", "lower"),
    "d1": Metric("within 11.25°"),
    "d2": Metric("within 22.5°"),
    "d3": Metric("within 30°"),
}


def run(view: View, data: Split, seed: int) -> Outcome:
    """Ridge regression of standardised patches onto unit normals; its strength is chosen on a tenth of train.

    Judged at the label's full size, where a plane can be fitted to the truth.
    """
    train = data.trained()
    rows = view.rows(train)
    places = sampled(rows, train, PATCHES, seed)
    truth = torch.stack([_on_grid(normals_of(train[place]), rows.grid(place)) for place in places])
    places, truth = labelled(places, truth, truth != 0, f"{train.name}: a surface")
    head = fit_normals(rows.stack(places), truth, seed=seed)
    seen = view.rows(data.test)
    ids = [item.id for item in data.test]
    kept = set(kept_ids(ids))
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    pictures: dict[str, Image.Image] = {}
    for place, item in enumerate(data.test):
        true = normals_of(item)[None]
        found = head.predict(seen.stack([place]), (true.shape[2], true.shape[3]))
        _add(values, found, true)
        if item.id in kept:
            pictures[item.id] = drawn(found[0].numpy())
    parts = {name: of_values(one) for name, one in values.items()}
    return Outcome(parts, ids, {"strength": head.strength, "training pictures": len(places)}, pictures)


def normals_of(item: Item) -> Tensor:
    """[3, H, W], 0 where it is not known. Raises ConfigError for an item without a camera."""
    if item.camera is None:
        raise ConfigError(f"{item.id}: no camera; normals need fx, fy, cx and cy")
    return torch.from_numpy(normals_of_depth(item.depth(), item.camera))


def _on_grid(normals: Tensor, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    size = (w * CELL, h * CELL)
    flat = cv2.resize(normals.permute(1, 2, 0).numpy(), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return torch.from_numpy(flat).permute(2, 0, 1)


def _add(values: dict[str, list[float]], found: Tensor, true: Tensor) -> None:
    for name, value in normal_metrics(found, true).items():
        values[name].append(float(value))


def mean_normal(data: Split) -> Mapping[str, Parts]:
    """Everything faces where training faces on average."""
    total = sum((normals_of(item).sum((1, 2)) for item in data.trained()), torch.zeros(3))
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for item in data.test:
        true = normals_of(item)[None]
        _add(values, F.normalize(total, dim=0)[None, :, None, None].expand_as(true), true)
    return {name: of_values(one) for name, one in values.items()}


def drawn(normals: np.ndarray) -> Image.Image:
    """x, y and towards the camera as red, green and blue; black where it is not known. [3, H, W]."""
    facing = normals * np.array([1, -1, -1], np.float32)[:, None, None]
    pixels = np.where((normals != 0).any(0), (facing + 1) * 127.5, 0).astype(np.uint8)
    return at_size(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """Picture and normals of its depth map."""
    wanted = set(ids)
    return {item.id: (small(item.image()), drawn(normals_of(item).numpy())) for item in data.test if item.id in wanted}


NORMALS = Task(
    "normals", "surface normals", METRICS, run,
    trains=True, seeds=True, floor=mean_normal, truth=truth,
)  # fmt: skip
