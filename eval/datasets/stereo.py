"""Stereo pairs with their measured disparity: the same scene from a little to the right (Middlebury 2014)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Item, LazyItems, NoSplit, Pair
from dino_tower.label_pictures import read_stored

POINTS = 32  # asked for along the longer side
DISPARITIES = ("disp0.pfm", "disp0GT.pfm")
SEEN = "mask0nocc.png"  # 255 where the second camera sees the point, too


def open_stereo(root: Path, name: str, split: str) -> Dataset:
    """SCENE/im0.png, im1.png and disp0.pfm or disp0GT.pfm (and mask0nocc.png), one item a scene."""
    if split != "test":
        raise NoSplit(f"{name}: no split {split!r}; stereo pairs have only test")
    scenes = sorted(path.parent for path in root.glob("*/im0.png"))
    for scene in scenes:
        if not (scene / "im1.png").is_file() or _disparity_of(scene) is None:
            raise ConfigError(f"{scene}: needs im0.png, im1.png and {' or '.join(DISPARITIES)}")
    items = LazyItems(len(scenes), partial(_item, scenes))
    return Dataset(name, "stereo", split, "its folders", items, frozenset({"pairs"}))


def _disparity_of(scene: Path) -> Path | None:
    return next((scene / one for one in DISPARITIES if (scene / one).is_file()), None)


def _item(scenes: list[Path], index: int) -> Item:
    """Points on a grid, where the disparity was measured and the point lies in both pictures."""
    scene = scenes[index]
    path = _disparity_of(scene)
    assert path is not None
    disparity = read_pfm(path)
    height, width = disparity.shape
    known = np.isfinite(disparity) & (disparity > 0)
    if (scene / SEEN).is_file():
        seen = read_stored(scene / SEEN)
        if seen.shape != disparity.shape:
            raise ConfigError(f"{scene / SEEN}: {seen.shape[1]} x {seen.shape[0]}, the disparity {width} x {height}")
        known &= seen == 255
    step = max(1, round(max(height, width) / POINTS))
    y, x = (one.reshape(-1) for one in np.mgrid[step // 2 : height : step, step // 2 : width : step])
    usable = known[y, x] & (x - np.where(known[y, x], disparity[y, x], 0) >= 0)
    if not usable.any():
        raise ConfigError(f"{path}: no point that both pictures show")
    y, x = y[usable], x[usable]
    box = (0.0, 0.0, float(width), float(height))
    first, second = np.stack([x, y], 1).astype(np.float64), np.stack([x - disparity[y, x], y], 1).astype(np.float64)
    pair = Pair(Item(f"{scene.name}/im1", scene / "im1.png"), first, second, box, box)
    return Item(scene.name, scene / "im0.png", pair=pair)


def read_pfm(path: Path) -> np.ndarray:
    """float32 [H, W] of a grey PFM file, whose rows run from the bottom up. Raises ConfigError."""
    parts = path.read_bytes().split(b"\n", 3)
    try:
        kind, size, scale, data = parts
        width, height = (int(one) for one in size.split())
        order = "<f4" if float(scale) < 0 else ">f4"
        if kind.strip() != b"Pf" or min(width, height) < 1 or len(data) != 4 * width * height:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{path}: not a grey PFM file") from None
    return np.frombuffer(data, order).reshape(height, width)[::-1].astype(np.float32)
