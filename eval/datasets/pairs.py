"""SPair-71k: pairs of pictures of one category with keypoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Item, LazyItems, NoSplit, Pair
from dino_tower.eval.datasets.reading import read_json, read_lines

FOLDERS = {"train": "trn", "val": "val", "test": "test"}
KEYS = ("src_imname", "trg_imname", "src_bndbox", "trg_bndbox", "src_kps", "trg_kps", "category")


def open_spair(root: Path, name: str, split: str) -> Dataset:
    """Layout/large/{trn,val,test}.txt and PairAnnotation/*/*.json, one item a pair, read when it is asked for."""
    if split not in FOLDERS:
        raise NoSplit(f"{name}: no split {split!r}; SPair-71k has train, val, test")
    part = FOLDERS[split]
    chosen = root / "Layout" / "large" / f"{part}.txt"
    if split == "train" and not chosen.is_file():
        raise NoSplit(f"{chosen}: no such list, for split {split!r}")
    pairs = read_lines(chosen)
    classes = tuple(sorted({pair.rpartition(":")[2] for pair in pairs}))
    if any(":" not in pair for pair in pairs):
        raise ConfigError(f"{chosen}: lines are NUMBER-SOURCE-TARGET:CATEGORY, not {pairs[0]!r}")
    items = LazyItems(len(pairs), partial(_item, root, part, pairs, classes))
    source = chosen.relative_to(root).as_posix()
    return Dataset(name, "spair", split, source, items, frozenset({"pairs"}), classes)


def _item(root: Path, part: str, pairs: list[str], classes: tuple[str, ...], index: int) -> Item:
    name = pairs[index]
    path = root / "PairAnnotation" / part / f"{name}.json"
    if not path.is_file():  # file systems without ":" in names
        path = path.with_name(f"{name.replace(':', '_')}.json")
    data = read_json(path)
    gone = [key for key in KEYS if key not in data]
    if gone:
        raise ConfigError(f"{path}: no {gone[0]!r}")
    first, second = (np.asarray(data[key], np.float64).reshape(-1, 2) for key in ("src_kps", "trg_kps"))
    if first.shape != second.shape or not len(first):
        raise ConfigError(f"{path}: {len(first)} and {len(second)} keypoints; needs as many of both, at least one")
    folder = root / "JPEGImages" / data["category"]
    target = Item(f"{name}/target", folder / data["trg_imname"])
    pair = Pair(target, first, second, _corners(data["src_bndbox"], path), _corners(data["trg_bndbox"], path))
    return Item(name, folder / data["src_imname"], classes.index(name.rpartition(":")[2]), pair=pair)


def _corners(values: list[float], path: Path) -> tuple[float, float, float, float]:
    if len(values) != 4:
        raise ConfigError(f"{path}: a box of {len(values)} numbers; needs left, top, right, bottom")
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom
