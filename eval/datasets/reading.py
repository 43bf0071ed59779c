"""Reading lists, JSON and label pictures, and choosing splits. What is wrong becomes one line that names the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import VOID, NoSplit
from dino_tower.images import EXTENSIONS, UnreadableImage, read_bytes
from dino_tower.label_pictures import class_ids, read_stored
from dino_tower.sources.opening import HELD_OUT

SAME = {  # names of one split, in the order they are looked for
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "val", "valid", "validation"),
}
MAX_CLASSES = VOID  # ids 0..254


@dataclass(frozen=True)
class MaskFile:
    """A label picture (palette, grey, 16-bit) read as class ids; `table` maps stored values to them, others are wrong.

    Without a table the stored values are the ids and VOID is void. A table leaves out what must not occur.
    """

    path: Path
    classes: int
    table: Mapping[int, int] | None = None

    def __call__(self) -> np.ndarray:
        """uint8 [H, W]. Raises ConfigError."""
        return class_ids(read_stored(self.path), str(self.path), self.classes, self.table)


@dataclass(frozen=True)
class StoredFile:
    """A label picture whose stored values are what is wanted, e.g. object numbers."""

    path: Path

    def __call__(self) -> np.ndarray:
        """uint8 or uint16 [H, W]. Raises ConfigError."""
        return read_stored(self.path)


def read_text(path: Path) -> str:
    """Raises ConfigError for a missing, empty or non-UTF-8 file."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnreadableImage as error:
        near = get_close_matches(path.name, sorted(p.name for p in path.parent.glob("*")), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != path.name else ""
        raise ConfigError(f"{path}: {error.reason}{hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None


def read_json(path: Path) -> Any:
    """Raises ConfigError naming the line that breaks."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: broken JSON in line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise ConfigError(f"{path}: JSON nested too deeply") from None


def read_lines(path: Path) -> list[str]:
    """The lines that say something. Raises ConfigError when none does."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"{path}: lists nothing")
    return lines


def own_list(folder: Path, split: str) -> Path:
    """The data set's own list of `split`; "test" is val.txt where test.txt is not given. Raises NoSplit."""
    names = SAME.get(split, (split,))
    for name in names:
        if (folder / f"{name}.txt").is_file():
            return folder / f"{name}.txt"
    found = ", ".join(sorted(path.stem for path in folder.glob("*.txt"))[:8]) or "none"
    raise NoSplit(f"{folder}: no {' or '.join(f'{name}.txt' for name in names)} for split {split!r}; lists: {found}")


def sub_folder(root: Path, split: str) -> Path | None:
    """The sub-folder of `split`, "test" being val where there is no test."""
    return next((root / name for name in SAME.get(split, (split,)) if (root / name).is_dir()), None)


def nothing_apart(name: str, split: str, own: Callable[[str], object], needs: str) -> None:
    """For data without a part of its own for `split`: may all of it be split by hash?

    own(split): whether that split has a folder or a list. Raises NoSplit where another one has: a share of everything
    would hold its pictures, too, and towers would be trained on what they are judged on. needs: what would be used.
    """
    other = next((one for one in ("train", "test") if one != split and own(one)), None)
    if other is not None:
        there = "test or val" if other == "test" else other
        raise NoSplit(f"{name}: there is a {there} part and none for split {split!r}; give both ({needs}), or neither: "
                      "then it is split by hash")  # fmt: skip


def needed_folder(root: Path, split: str) -> Path:
    """`sub_folder`, or NoSplit."""
    found = sub_folder(root, split)
    if found is None:
        have = ", ".join(sorted(path.name for path in root.glob("*") if path.is_dir())[:8]) or "none"
        raise NoSplit(f"{root}: no folder for split {split!r}; folders: {have}")
    return found


def images_in(folder: Path) -> list[Path]:
    """Every picture of a folder and its sub-folders, by name. Raises ConfigError when there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.name[0] != ".")
    if not found:
        raise ConfigError(f"{folder}: {'no images' if folder.is_dir() else 'no such folder'}")
    return found


def image_named(folder: Path, stem: str) -> Path:
    """The picture `stem` with whatever extension. Raises ConfigError."""
    for extension in (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG"):
        if (folder / f"{stem}{extension}").is_file():
            return folder / f"{stem}{extension}"
    if Path(stem).suffix.lower() in EXTENSIONS and (folder / stem).is_file():
        return folder / stem
    raise ConfigError(f"{folder}: no image {stem!r}, which the list names")


def all_labelled(where: str, ids: Iterable[str], missing: Sequence[str], kind: str) -> None:
    """Raise ConfigError when some of the images have no label."""
    if missing:
        raise ConfigError(f"{where}: {len(missing)} of {len(list(ids))} images have no {kind}, the first: {missing[0]}")


def by_hash(where: str, ids: Sequence[str], split: str) -> tuple[list[int], str]:
    """(places, how they were chosen): a share HELD_OUT is "test", as in `sources.opening.hash_split`.

    For data of which no split has a folder or a list of its own. Adding images moves none of the old ones. Raises
    NoSplit for a part that stays empty and for another split, ConfigError for less than two images.
    """
    if split not in ("train", "test"):
        raise NoSplit(f"{where}: no split {split!r}; without lists or folders there are train and test, by hash")
    if len(ids) < 2:
        raise ConfigError(f"{where}: {len(ids)} image; needs two or more to be split into train and test")
    draws = (hashlib.blake2b(one.encode("utf-8", "surrogateescape"), digest_size=4).digest() for one in ids)
    test = [int.from_bytes(draw, "big") < int(HELD_OUT * 2**32) for draw in draws]
    chosen = [place for place, held in enumerate(test) if held == (split == "test")]
    if not chosen:
        raise NoSplit(
            f"{where}: {len(ids)} images are too few to split a {split} part off; give train and test folders"
        )
    return chosen, f"hash of the id ({len(chosen)} of {len(ids)})"
