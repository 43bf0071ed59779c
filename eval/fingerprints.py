"""Whether a data set is still the one that was measured: its pictures, and what is known about them."""

from __future__ import annotations

import hashlib
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dino_tower.eval.datasets.base import Dataset, Item, LazyItems


class Prints(NamedTuple):
    """Two hashes. Features depend on `pictures` only; scores on `labels`, too: masks, boxes, captions, class lists."""

    pictures: str
    labels: str


def fingerprint(data: Dataset) -> str:
    """A hash of the pictures by name, and by size and time of change where they are files."""
    return prints_of(data, labels=False).pictures


def prints_of(data: Dataset, labels: bool = True) -> Prints:
    """Both, in one look at every item; without `labels` the second says nothing.

    Label files count by size and time of change, as pictures do; what is in memory counts by its values.
    """
    pictures = hashlib.sha256(f"{data.name} {data.split}".encode())
    known = hashlib.sha256(repr((data.classes, data.regions)).encode())
    made_up = isinstance(data.items, LazyItems) and data.items.name is not None  # no files, and costly to make
    for name in data.ids() if made_up else ():
        pictures.update(name.encode())
    for item in () if made_up else data:
        pictures.update(item.id.encode())
        if changed := _changed(item.payload):
            pictures.update(changed.encode())
        if labels:
            known.update(repr(_known(item)).encode())
    return Prints(pictures.hexdigest(), known.hexdigest())


def _known(item: Item) -> tuple[Any, ...]:
    """Everything about one picture but its own pixels, which is always the same text for the same labels."""
    readers = [_read_by(one) for one in (item.mask_reader, item.instance_reader, item.depth_reader)]
    frames = [(frame.id, _changed(frame.payload), _known(frame)) for frame in item.frames]
    values = (item.label, item.boxes, item.captions, item.phrases, item.query, item.camera)
    if (pair := item.pair) is None:
        return *values, readers, frames
    points = (pair.points.tolist(), pair.target_points.tolist(), pair.box, pair.target_box)
    return *values, readers, frames, _changed(pair.target.payload), points


def _read_by(reader: object) -> list[Any] | None:
    """The fields of a reader, files by their change; None for the labels of pictures that are made up, as they are."""
    if reader is None or not is_dataclass(reader):
        return None
    return [_changed(value) if isinstance(value, Path) else value for value in vars(reader).values()]


def _changed(file: object) -> str:
    """Size and time of change of a file; empty for what is none."""
    if not isinstance(file, (str, Path)) or not Path(file).is_file():
        return ""
    stat = Path(file).stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"
