"""A folder of images, recursive. Where the images lie in two or more folders, those are the classes."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from dino_tower.errors import ConfigError, unknown
from dino_tower.images import EXTENSIONS
from dino_tower.sources.base import NO_LABEL, Sample, Source, SourceOptions, all_labels, label_at
from dino_tower.sources.strings import Paths, PathsBuilder, SharedArrays

PREFIXES = {".parquet": "hf:{}", ".arrow": "hf:{}", ".tar": "tar:{}/*.tar"}
SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}


def open_folder(spelling: str, options: SourceOptions, split: str) -> Source:
    """Every image under a folder, in the order of their names; of split folders only the one of `split`.

    Raises:
        ConfigError: no such folder, not a folder, or no images in it.
    """
    root = Path(spelling).expanduser()
    if not root.exists():
        raise missing_path(spelling, root)
    if not root.is_dir():
        raise ConfigError(
            f"--data {spelling!r} is a file; give a folder of images, a list (.csv, .tsv, .txt), tar:PATTERN or hf:DIR"
        )
    if options.split not in (None, "train", "test", "all"):
        raise unknown("split of a folder", options.split, ("train", "test", "all"), "--source.split")
    chosen = split_folder(root, options.split or split)
    if chosen is None and options.split in ("train", "test"):
        raise ConfigError(f"--source.split {options.split!r}: {spelling!r} has no train and test (or val) sub-folders")
    if chosen is None:
        return FolderSource(root, spelling)
    source = FolderSource(root / chosen, str(Path(spelling) / chosen))
    source.has_splits = True
    return source


def split_folder(root: Path, split: str) -> str | None:
    """The name of the sub-folder that holds `split`, when `root` has a train folder and a test or val folder."""
    if split == "all":
        return None
    found = {kind: next((n for n in names if (root / n).is_dir()), None) for kind, names in SPLIT_FOLDERS.items()}
    return found["train" if split == "train" else "test"] if all(found.values()) else None


class FolderSource(Source):
    """Images under `root`; ids are paths relative to it, with forward slashes."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = str(root), name
        self.paths, folder_of, folders, others, self.closed = _scan(root)
        if not len(self.paths):
            raise _nothing_found(name, others, self.closed)
        self._labels: SharedArrays | None = None
        order = sorted((index for index, folder in enumerate(folders) if folder), key=folders.__getitem__)
        if len(order) >= 2:
            self.classes = tuple(folders[index] for index in order)
            table = np.full(len(folders), NO_LABEL, np.int32)
            table[order] = np.arange(len(order))
            self._labels = SharedArrays(table[folder_of])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        return Sample(f"{self.root}/{path}", path, label_at(self._labels, index))

    def sample_id(self, index: int) -> str:
        return self.paths[index]

    def labels(self) -> np.ndarray | None:
        return all_labels(self._labels)

    def describe(self) -> str:
        closed = f" ({len(self.closed)} folders may not be listed, the first: {self.closed[0]})" if self.closed else ""
        return super().describe() + closed


def _scan(root: Path) -> tuple[Paths, np.ndarray, list[str], Counter, list[str]]:
    """Paths relative to root, the folder number of each, folder names, extensions left out, folders that are closed."""
    paths, folder_of = PathsBuilder(), array("i")
    folder_names: list[str] = []
    others: Counter = Counter()
    closed: list[str] = []
    for folder, names in _walk(str(root), "", closed, frozenset()):
        pictures = []
        for name in names:
            extension = Path(name).suffix.lower()
            if extension in EXTENSIONS:
                pictures.append(name)
            else:
                others[extension] += 1
        if pictures:
            paths.extend([os.fsencode(f"{folder}/{name}" if folder else name) for name in pictures])
            folder_of.extend([len(folder_names)] * len(pictures))
            folder_names.append(folder)
    return paths.done(), np.array(folder_of, np.int32), folder_names, others, closed


def _walk(root: str, folder: str, closed: list[str], above: frozenset) -> Iterator[tuple[str, list[str]]]:
    """(folder, sorted file names), depth first in the order of names. Hidden names are left out; a link back to a
    folder above is not followed."""
    here = Path(root, folder)
    try:
        status = here.stat()
        with os.scandir(here) as listing:
            entries = sorted((entry.name, entry.is_dir()) for entry in listing if not entry.name.startswith("."))
    except OSError:
        closed.append(folder or root)
        return
    key = (status.st_dev, status.st_ino)
    if key in above:
        return
    yield folder, [name for name, is_folder in entries if not is_folder]
    for name, is_folder in entries:
        if is_folder:
            yield from _walk(root, f"{folder}/{name}" if folder else name, closed, above | {key})


def _nothing_found(name: str, others: Counter, closed: list[str]) -> ConfigError:
    if closed:
        return ConfigError(f"--data {name!r}: no images, and {closed[0]!r} may not be listed: check its permissions")
    if not others:
        return ConfigError(f"--data {name!r}: the folder is empty; put images in it or its sub-folders")
    counts = ", ".join(f"{n} {ext or 'without extension'}" for ext, n in others.most_common(3))
    hint = next((f"; try --data {PREFIXES[ext].format(name)}" for ext in PREFIXES if others[ext]), "")
    read = " ".join(sorted(EXTENSIONS))
    return ConfigError(f"--data {name!r}: no images among its {others.total()} files ({counts}); read are {read}{hint}")


def missing_path(spelling: str, path: Path) -> ConfigError:
    """The error for a path that does not exist: names the nearest sibling, or the first part that is missing."""
    while not path.parent.exists() and path.parent != path:
        path = path.parent
    try:
        siblings = sorted(sibling.name for sibling in path.parent.iterdir())
    except OSError:
        siblings = []
    near = get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    here = "the current folder" if str(path.parent) == "." else repr(str(path.parent))
    hint = f"; did you mean {str(path.with_name(near[0]))!r}?" if near else f": {here} has no {path.name!r}"
    return ConfigError(f"--data {spelling!r} does not exist{hint}")
