"""Pictures with YOLO text files: images/ and labels/, classes in a YAML file or classes.txt."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import yaml

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Box, Dataset, Item, LazyItems
from dino_tower.eval.datasets.reading import by_hash, images_in, nothing_apart, read_lines, read_text, sub_folder
from dino_tower.images import image_size

Row = tuple[int, float, float, float, float]  # class, left, top, right, bottom in shares of the picture


def has_yolo(root: Path) -> bool:
    """images/ beside labels/ that hold text files."""
    return (root / "images").is_dir() and (root / "labels").is_dir() and any((root / "labels").rglob("*.txt"))


def open_yolo(root: Path, name: str, split: str) -> Dataset:
    """Lines "class x y width height" (centre, shares of the picture), or "class x y x y ..." outlines: their boxes.

    A picture without a text file shows nothing, as YOLO has it. Splits: images/train, images/val; else by hash.
    """
    names = yolo_classes(root)
    folder = sub_folder(root / "images", split)
    pictures = images_in(folder or root / "images")
    chosen_by = f"images/{folder.name}" if folder else ""
    if folder is None:
        nothing_apart(name, split, lambda one: sub_folder(root / "images", one), f"images/{split}")
        places, chosen_by = by_hash(name, [p.relative_to(root / "images").as_posix() for p in pictures], split)
        pictures = [pictures[place] for place in places]
    ids = [path.relative_to(root / "images").with_suffix("").as_posix() for path in pictures]
    texts = [root / "labels" / path.relative_to(root / "images").with_suffix(".txt") for path in pictures]
    if not any(path.is_file() for path in texts):
        raise ConfigError(f"{name}: none of the {len(texts)} images has a text file in labels/, e.g. {texts[0]}")
    rows = [read_rows(path, len(names)) if path.is_file() else () for path in texts]
    items = LazyItems(len(pictures), partial(_item, pictures, ids, rows))
    return Dataset(name, "yolo", split, chosen_by, items, frozenset({"boxes"}), regions=names)


def _item(pictures: list[Path], ids: list[str], rows: list[tuple[Row, ...]], index: int) -> Item:
    path = pictures[index]
    wide, high = image_size(path)  # when asked for: a header per picture is too slow for a whole set
    boxes = tuple(Box((x0 * wide, y0 * high, x1 * wide, y1 * high), kind) for kind, x0, y0, x1, y1 in rows[index])
    return Item(ids[index], path, boxes=boxes)


def yolo_classes(root: Path) -> tuple[str, ...]:
    """`names` (a list, or numbers to names) of the only YAML file, or the lines of classes.txt. Raises ConfigError."""
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    if (root / "classes.txt").is_file():
        return tuple(read_lines(root / "classes.txt"))
    if len(files) != 1:
        raise ConfigError(
            f"{root}: {len(files)} YAML files and no classes.txt; the class names must stand in one of them"
        )
    try:
        data = yaml.safe_load(read_text(files[0]))
    except yaml.YAMLError as error:
        raise ConfigError(f"{files[0]}: broken YAML: {' '.join(str(error).split())}") from None
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[place] for place in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ConfigError(f"{files[0]}: no 'names'; needs a list of class names, or 0: name, 1: name, ...")
    return tuple(str(one) for one in names)


def read_rows(path: Path, classes: int) -> tuple[Row, ...]:
    """Raises ConfigError naming the line: no numbers, a class that does not exist, a place outside the picture."""
    if not path.stat().st_size:
        return ()
    rows: list[Row] = []
    for place, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            kind, *numbers = (float(word) for word in line.split())
        except ValueError:
            raise ConfigError(f"{path}: line {place} is not numbers: {line[:60]!r}") from None
        if len(numbers) < 4 or len(numbers) % 2:
            raise ConfigError(f"{path}: line {place} has {len(numbers) + 1} numbers; needs class, x, y, width, height")
        if not (kind == int(kind) and 0 <= kind < classes):
            raise ConfigError(f"{path}: line {place}: class {kind:g}; the {classes} classes are 0 to {classes - 1}")
        if not all(math.isfinite(v) and -0.001 <= v <= 1.001 for v in numbers):
            raise ConfigError(
                f"{path}: line {place}: a place outside 0 to 1; YOLO gives shares of the picture, not pixels"
            )
        if len(numbers) == 4:
            x, y, wide, high = numbers
            corners = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
        else:
            corners = (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
        left, top, right, bottom = (min(max(v, 0.0), 1.0) for v in corners)
        rows.append((int(kind), left, top, right, bottom))
    return tuple(rows)
