"""Folders without a format of their own: class folders, ImageNet, images beside masks."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import VOID, Dataset, Item, LazyItems, NoSplit
from dino_tower.eval.datasets.reading import (
    MAX_CLASSES,
    SAME,
    MaskFile,
    all_labelled,
    by_hash,
    images_in,
    needed_folder,
    nothing_apart,
    read_json,
    read_lines,
    sub_folder,
)
from dino_tower.images import EXTENSIONS
from dino_tower.sources import NO_LABEL, Source, open_source, open_sources
from dino_tower.sources.opening import HELD_OUT

IMAGES, MASKS = ("images", "imgs"), ("masks", "labels", "annotations")
CLASS_LISTS = ("classes.txt", "classes.json")
SYNSETS, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"


def open_classes(root: Path, name: str, split: str) -> Dataset:
    """A folder a class, in train/ and test/ (or val/) or split by hash. The same classes in both splits.

    Raises ConfigError for a class without images, one that has test images only, and images in no class.
    """
    if split not in ("train", "test"):
        raise NoSplit(f"{name}: no split {split!r}; class folders have train and test (test/ or val/, else by hash)")
    train, test = (open_sources(str(root), split=one, hold_out=HELD_OUT) for one in ("train", "test"))
    source = train if split == "train" else test
    classes = train.classes or ()
    if len(classes) < 2:
        raise ConfigError(f"{name}: images of {len(classes)} class; needs two class folders or more")
    inside = {test.sample_id(index).rpartition("/")[0] for index in range(len(test))}
    strange = sorted(inside - set(classes) - {""})
    if strange:
        raise ConfigError(f"{name}: class {strange[0]!r} of test is not in train: a class that cannot be learned")
    chosen = f"{Path(source.name).name}/" if source.has_splits else f"hash of the id ({len(source)} images)"
    bases = (needed_folder(root, "train"), needed_folder(root, "test")) if source.has_splits else (root,)
    for base in bases:
        empty = [f for f in sorted(base.iterdir()) if f.is_dir() and f.name[0] != "." and not _has_images(f)]
        if empty:
            raise ConfigError(f"{empty[0]}: class {empty[0].name!r} has no images")
    labels = _labels(source, classes)
    bare = (labels == NO_LABEL).nonzero()[0]
    all_labelled(name, map(str, range(len(source))), [source.sample_id(int(i)) for i in bare], "class")
    items = LazyItems(len(source), partial(_sample, source, labels))
    return Dataset(name, "classes", split, chosen, items, frozenset({"labels"}), classes)


def _labels(source: Source, classes: Sequence[str]) -> np.ndarray:
    """int64 [N] by the folder of each picture. `Source.labels` knows none where only one class folder is there."""
    place = {name: index for index, name in enumerate(classes)}
    folders = (source.sample_id(index).rpartition("/")[0] for index in range(len(source)))
    return np.fromiter((place.get(folder, NO_LABEL) for folder in folders), np.int64, len(source))


def _sample(source: Source, labels: np.ndarray, index: int) -> Item:
    sample = source[index]
    return Item(sample.id, sample.payload, int(labels[index]))


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in EXTENSIONS for path in folder.rglob("*"))


def has_class_folders(root: Path) -> bool:
    """Two sub-folders with pictures or more, in `root` or in its train folder."""
    base = sub_folder(root, "train") or root
    return sum(_has_images(path) for path in base.iterdir() if path.is_dir() and path.name[0] != ".") >= 2


def imagenet_root(root: Path) -> Path | None:
    """The folder with train/nXXXXXXXX: `root`, or Data/CLS-LOC of the Kaggle archive."""
    for folder in (root, root / "Data" / "CLS-LOC", root / "ILSVRC" / "Data" / "CLS-LOC"):
        if next(folder.glob("train/n[0-9]*/"), None):
            return folder
    return None


def open_imagenet(root: Path, name: str, split: str) -> Dataset:
    """train/nXXXXXXXX/*.JPEG, and val/ in class folders or flat with LOC_val_solution.csv. "test" is val: the labels of
    test are not public. LOC_synset_mapping.txt gives the names; without it classes keep their numbers."""
    folder = imagenet_root(root) or root
    ids = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    place = {one: index for index, one in enumerate(ids)}
    words = _synsets(root / SYNSETS) if (root / SYNSETS).is_file() else {}
    classes = tuple(words.get(one, one) for one in ids)
    part = folder / ("train" if split == "train" else "val")
    if not part.is_dir():
        raise NoSplit(f"{part}: no such folder, for split {split!r}")
    if next(part.glob("n[0-9]*/"), None):
        source = open_source(str(part), split="all")
        labels = _labels(source, ids)
        bare = (labels == NO_LABEL).nonzero()[0]
        all_labelled(name, map(str, range(len(source))), [source.sample_id(int(i)) for i in bare], "class of train/")
        items = LazyItems(len(source), partial(_sample, source, labels))
        return Dataset(name, "imagenet", split, part.name, items, frozenset({"labels"}), classes)
    pictures = images_in(part)
    solution = root / SOLUTION
    if not solution.is_file():
        raise ConfigError(f"{name}: val/ has no class folders and there is no {SOLUTION}")
    with solution.open(encoding="utf-8", newline="") as file:
        found = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    wrong = [path.stem for path in pictures if found.get(path.stem) not in place]
    all_labelled(name, map(str, pictures), wrong, f"class of train/ in {SOLUTION}")
    flat = [Item(path.stem, path, place[found[path.stem]]) for path in pictures]
    return Dataset(name, "imagenet", split, SOLUTION, flat, frozenset({"labels"}), classes)


def _synsets(path: Path) -> dict[str, str]:
    lines = (line.partition(" ") for line in read_lines(path))
    return {one: words.split(",")[0].strip() for one, _, words in lines}


def mask_folders(root: Path) -> tuple[Path, Path] | None:
    """(images, masks) of `root`, where the masks are pictures."""
    images = next((root / one for one in IMAGES if (root / one).is_dir()), None)
    masks = next((root / one for one in MASKS if (root / one).is_dir() and _has_images(root / one)), None)
    return (images, masks) if images and masks else None


def open_masks(root: Path, name: str, split: str) -> Dataset:
    """images/ and masks/ with the same names, and classes.txt or classes.json. Every picture needs its mask."""
    found = mask_folders(root)
    if found is None:
        raise ConfigError(f"{name}: needs images/ and masks/ (or labels/, annotations/) with pictures in both")
    listed = next((root / one for one in CLASS_LISTS if (root / one).is_file()), None)
    if listed is None:
        raise ConfigError(f"{name}: no {' or '.join(CLASS_LISTS)}: what the mask values mean, a line each from 0 on")
    return _masked(*found, listed, name, split, every=True)


def open_named_masks(spelling: str, split: str) -> Dataset:
    """`masks:IMAGES,MASKS,CLASSES`: folders and class list wherever they lie. The masks lead: pictures without one are
    left out. Lists MASKS_train.txt, MASKS_val.txt beside the mask folder, or train.txt, val.txt, are used."""
    parts = spelling.partition(":")[2].split(",")
    if len(parts) != 3:
        raise ConfigError(f"{spelling!r}: write masks:IMAGES,MASKS,CLASSES (two folders and a class list)")
    images, masks, listed = (Path(part).expanduser() for part in parts)
    return _masked(images, masks, listed, spelling, split, every=False)


def _masked(images: Path, masks: Path, listed: Path, name: str, split: str, every: bool) -> Dataset:
    classes, table = read_classes(listed)
    inside, twin = sub_folder(images, split), sub_folder(masks, split)
    chosen_by = f"{images.name}/{inside.name}" if inside and twin else ""
    base, over = (inside, twin) if inside and twin else (images, masks)
    pictures = {path.relative_to(base).with_suffix("").as_posix(): path for path in images_in(base)}
    labels = {path.relative_to(over).with_suffix("").as_posix(): path for path in images_in(over)}
    ids = sorted(pictures) if every else sorted(labels)
    if not chosen_by:
        if (chosen := _list_beside(masks, split)) is not None:
            ids, chosen_by = [line.split()[0] for line in read_lines(chosen)], chosen.name
            gone = [one for one in ids if one not in pictures]
            if gone:
                raise ConfigError(f"{chosen}: {gone[0]!r} is not in {images}")
        elif inside or twin:
            raise ConfigError(f"{inside or twin}: no folder of this name in {masks if inside else images}")
        else:
            nothing_apart(name, split, lambda one: _has_own(images, masks, one),
                          f"{images.name}/{split} and {masks.name}/{split}, or {split}.txt")  # fmt: skip
    all_labelled(name, ids, [one for one in ids if one not in labels], f"mask in {over}")
    alone = [one for one in ids if one not in pictures]
    if alone:
        raise ConfigError(f"{name}: {len(alone)} of {len(ids)} masks have no picture in {base}, the first: {alone[0]}")
    if not chosen_by:
        places, chosen_by = by_hash(name, ids, split)
        ids = [ids[place] for place in places]
    items = [Item(one, pictures[one], mask_reader=MaskFile(labels[one], len(classes), table)) for one in ids]
    return Dataset(name, "masks", split, chosen_by, items, frozenset({"masks"}), regions=classes)


def _list_beside(masks: Path, split: str) -> Path | None:
    own = [masks.parent / f"{start}{one}.txt" for start in (f"{masks.name}_", "") for one in SAME.get(split, (split,))]
    return next((path for path in own if path.is_file()), None)


def _has_own(images: Path, masks: Path, split: str) -> bool:
    """Folders or a list."""
    return bool(sub_folder(images, split) and sub_folder(masks, split)) or _list_beside(masks, split) is not None


def read_classes(path: Path) -> tuple[tuple[str, ...], dict[int, int] | None]:
    """(names, stored value -> class id): a line a class, a JSON list of names, {"value": name} or COCO categories.

    Where values are given they are renumbered from 0; a value 0 that is not among them is void, as COCO has it.
    """
    if path.suffix != ".json":
        names, values = read_lines(path), None
    else:
        data = read_json(path)
        rows = data["categories"] if isinstance(data, dict) and isinstance(data.get("categories"), list) else data
        try:
            if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                rows = {row["id"]: row["name"] for row in rows}
            values = [int(value) for value in rows] if isinstance(rows, dict) else None
            names = [str(one) for one in (rows.values() if isinstance(rows, dict) else rows)]
        except (KeyError, TypeError, ValueError):
            needs = 'a list of names, {"value": "name"} or COCO categories'
            raise ConfigError(f"{path}: {json.dumps(rows)[:60]}; needs {needs}") from None
    if not 1 <= len(names) <= MAX_CLASSES:
        raise ConfigError(f"{path}: {len(names)} classes; masks hold 1 to {MAX_CLASSES}")
    table = None if values is None else {0: VOID, VOID: VOID} | {value: place for place, value in enumerate(values)}
    return tuple(names), table
