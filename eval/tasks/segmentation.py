"""What the segmentation tasks share: labels in the form they train on, scores at the label's full size, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import VOID, Dataset, Item
from dino_tower.eval.miou import Areas, areas, joined, miou_parts
from dino_tower.eval.stats import Parts
from dino_tower.eval.task import Metric, Outcome, Split, kept_ids
from dino_tower.eval.view import Rows

CELL = 8  # label pixels along a side of a patch: the shares of classes in it are counted in 64ths
SHOWN = 240  # pixels of the longer side of a picture that is kept
METRICS = {"miou": Metric("mIoU")}


def regions_of(data: Split) -> int:
    """C, the number of classes that masks hold."""
    if len(data.test.regions) < 2:
        raise ConfigError(f"{data.test.name}: masks with {len(data.test.regions)} classes; need two or more")
    return len(data.test.regions)


def label_on(grid: tuple[int, int], item: Item) -> Tensor:
    """The label [CELL h, CELL w] uint8 on a patch grid, nearest neighbour: thin things keep their class."""
    h, w = grid
    return torch.from_numpy(cv2.resize(item.mask(), (w * CELL, h * CELL), interpolation=cv2.INTER_NEAREST_EXACT))


def training(rows: Rows, train: Dataset, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Patches [B, h, w, D] and labels [B, CELL h, CELL w] of as many training pictures as have `most` patches at most.

    Larger sets are sampled by the seed: what a head learns from a million patches changes little with ten million.
    """
    order = sampled(rows, train, most, seed)
    labels = torch.stack([label_on(rows.grid(i), train[i]) for i in order])
    return rows.stack(order), labels


def sampled(rows: Rows, train: Dataset, most: int, seed: int, least: int = 2) -> list[int]:
    """As many training pictures as have `most` patches at most, but `least`, drawn by the seed; in order."""
    keep = min(len(train), max(least, most // (rows.grid(0)[0] * rows.grid(0)[1])))
    return torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:keep].sort().values.tolist()


def judge(rows: Rows, data: Split, predict: Callable[[Tensor, tuple[int, int]], Tensor]) -> Outcome:
    """mIoU over the test pictures, each at its label's full size.

    predict: patches [1, h, w, D] and (H, W) to classes [1, H, W].
    """
    return judge_pictures(data, lambda i, size: predict(rows.stack([i]), size)[0].cpu().numpy())


def judge_pictures(data: Split, predict: Callable[[int, tuple[int, int]], np.ndarray]) -> Outcome:
    """The same; predict: number of the test picture and (H, W) to classes [H, W]."""
    classes, test = regions_of(data), data.test
    ids = [item.id for item in test]
    kept = set(kept_ids(ids))
    counts: list[Areas] = []
    pictures: dict[str, Image.Image] = {}
    for i, item in enumerate(test):
        truth = item.mask()
        found = predict(i, (truth.shape[0], truth.shape[1]))
        counts.append(areas(found, truth, classes))
        if item.id in kept:
            pictures[item.id] = drawn(found.astype(np.uint8))
    return Outcome({"miou": miou_parts(joined(counts))}, ids, pictures=pictures)


def majority(data: Split) -> Mapping[str, Parts]:
    """Every pixel is of the class with most pixels in training."""
    classes = regions_of(data)
    total = np.zeros(256, np.int64)
    for item in data.trained():
        total += np.bincount(item.mask().reshape(-1), minlength=256)
    total[VOID] = 0
    most = int(total[:classes].argmax())
    counts = []
    for item in data.test:
        truth = item.mask()
        counts.append(areas(np.full_like(truth, most), truth, classes))
    return {"miou": miou_parts(joined(counts))}


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """Picture and label of the units that are shown."""
    wanted = set(ids)
    return {item.id: (small(item.image()), drawn(item.mask())) for item in data.test if item.id in wanted}


def small(picture: Image.Image) -> Image.Image:
    """At most SHOWN pixels wide and high."""
    picture = picture.copy()
    picture.thumbnail((SHOWN, SHOWN), Image.Resampling.BICUBIC)
    return picture


def drawn(mask: np.ndarray) -> Image.Image:
    """Class ids [H, W] as colours, void white. Neighbouring ids get unlike hues (a golden-angle walk)."""
    hue = (np.arange(256) * 111) % 180
    light = np.where(np.arange(256) % 2, 255, 190)
    palette = cv2.cvtColor(np.stack([hue, np.full(256, 190), light], -1).astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]
    palette[0], palette[VOID] = (32, 32, 40), (255, 255, 255)
    height, width = mask.shape
    scale = SHOWN / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(palette[cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)])
