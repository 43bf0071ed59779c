"""What `datasets` and parquet files have in common: splits by name, and what stands in the columns of a row."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_tower.errors import ConfigError, unknown
from dino_tower.images import UnreadableImage
from dino_tower.sources.base import NO_LABEL, LabelsBuilder
from dino_tower.sources.columns import find_column
from dino_tower.sources.folder import SPLIT_FOLDERS
from dino_tower.sources.strings import SharedArrays

if TYPE_CHECKING:
    from datasets import Features

HELD_OUT_NAMES = SPLIT_FOLDERS["test"]
IMAGE_KEYS = {"bytes", "path"}


def choose_splits(names: list[str], wanted: str | None, split: str, spelling: str) -> tuple[list[str], bool]:
    """The dataset's own names for what to read, and whether the dataset keeps a test split apart from it.

    It is one split, except for "all", which is every one of them.

    Raises:
        ConfigError: the one asked for is missing, or none of several is the obvious one.
    """
    if wanted is not None and wanted not in ("all", "train", "test"):
        if wanted not in names:
            raise unknown("split", wanted, names, f"--data {spelling!r}")
        return [wanted], False
    trains = [name for name in names if name in SPLIT_FOLDERS["train"]]
    tests = [name for name in HELD_OUT_NAMES if name in names]
    if wanted in names:
        return [str(wanted)], False
    if (wanted or split) == "all":
        return names, False
    if wanted in ("train", "test") and not (trains if wanted == "train" else tests):
        raise unknown("split", wanted, names, f"--data {spelling!r}")
    if (wanted or split) == "test" and tests and (trains or wanted):
        return tests[:1], True
    if trains:
        return trains[:1], bool(tests)
    if len(names) == 1:
        return names, False
    raise ConfigError(f"--data {spelling!r}: which split? Add it after a colon; choices: {', '.join(sorted(names))}")


def quiet_datasets() -> None:
    """`datasets` logs what it then raises, stack and all: the line that the user gets would be the last of fifty."""
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()


def label_column(wanted: str | None, columns: list[str], features: Features, where: str) -> str | None:
    """As `find_column` for the label; where no name fits, a column that is of classes by its type."""
    import datasets

    found = find_column("label", wanted, columns, where)
    typed = (name for name in columns if isinstance(features.get(name), datasets.ClassLabel))
    return found or next(typed, None)


def class_numbers(
    values: list[Any], known: list[str] | None, named: str = ""
) -> tuple[tuple[str, ...] | None, SharedArrays | None]:
    """Class names and int32 [N] places among them.

    known: values are already numbers into these names. named: the setting by which the user chose the column, if so.

    Raises:
        ConfigError: the column was named, and a cell of it is no class, or all are empty.
    """
    if known is not None:
        labels = np.array([NO_LABEL if value is None or value < 0 else value for value in values], np.int32)
        return tuple(known), SharedArrays(labels)
    names = [_class_name(value) for value in values]
    if named:
        odd = next(
            (v for v, name in zip(values, names, strict=True) if name is None and v is not None and v == v), None
        )
        if odd is not None:
            raise ConfigError(f"{named}: a class is a text or a whole number, and the column holds {str(odd)[:60]}")
        if not any(names):
            raise ConfigError(f"{named}: all {len(names)} rows of the column are empty")
    builder = LabelsBuilder()
    builder.extend(names)
    return builder.done()


def _class_name(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():  # what pandas makes of whole numbers with gaps between them
        value = int(value)
    return str(value) if isinstance(value, (str, int)) else None


def encoded_image(value: Any, folder: Path | None) -> Any:
    """What `read_image` takes, from a cell: {"bytes", "path"}, bytes, a path relative to `folder`, or pixels.

    Raises:
        UnreadableImage: an empty cell, or none of these.
    """
    if isinstance(value, dict) and set(value) <= IMAGE_KEYS:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return str(folder / value) if folder is not None else value
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, (list, np.ndarray)):
        from PIL import Image

        pixels = np.asarray(value)
        if pixels.dtype.kind in "iu" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
            return Image.fromarray(pixels.astype(np.uint8))
    raise UnreadableImage("the row has no image" if not value else f"a {type(value).__name__} is not an image")


def caption_text(value: Any) -> str | None:
    """The caption in a cell; of several the first."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return None if value is None else str(value)


def more_texts(value: Any) -> list[str]:
    """The captions in a cell behind its first."""
    return [str(text) for text in value[1:] if text is not None] if isinstance(value, (list, tuple)) else []
