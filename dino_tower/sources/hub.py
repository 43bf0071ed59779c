"""`hf:NAME_OR_DIR[:SPLIT]`: a Hub dataset, a `save_to_disk` folder or a folder of parquet files, read by `datasets`.

Images stay encoded until the one reader of `dino_tower.images` decodes them.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.sources.base import Sample, Source, SourceOptions, all_labels, label_at
from dino_tower.sources.columns import find_column, image_column
from dino_tower.sources.folder import missing_path
from dino_tower.sources.parquet import open_parquet_stream
from dino_tower.sources.rows import (
    caption_text,
    choose_splits,
    class_numbers,
    encoded_image,
    label_column,
    more_texts,
    quiet_datasets,
)
from dino_tower.sources.strings import SharedArrays

if TYPE_CHECKING:
    from datasets import Dataset

STRETCH = 1000  # rows of a streamed dataset on disk that are read in one go


def open_hub(spelling: str, options: SourceOptions, split: str) -> Source:
    """Open a dataset; of its splits the one in the spelling, in --source.split, or the one that plays `split`.

    "all" puts the splits one behind the other.

    Raises:
        ConfigError: no such dataset, folder, split or column, or splits of unlike columns for "all".
    """
    name, wanted = hub_parts(spelling)
    if not name:
        raise ConfigError("--data 'hf:': give a Hub name or a folder after the colon")
    wanted = wanted or options.split
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and (folder.exists() or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        if folder.exists():
            raise ConfigError(f"--data {spelling!r} is a file; give the folder that holds it")
        raise missing_path(spelling, folder)
    saved = local and any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    if options.streaming and not saved:
        return open_parquet_stream(spelling, name, wanted, split, options)
    tables = _load_saved(folder, spelling) if saved else _load_tables(folder if local else name, spelling, options)
    chosen, has_splits = choose_splits(list(tables), wanted, split, spelling)
    label = spelling if wanted else f"{spelling}:{'+'.join(chosen)}"
    table = _joined([tables[one] for one in chosen], spelling)
    source = TableSource(table, label, options, folder if local else None)
    source.has_splits = has_splits
    if options.streaming:
        source.stretches = np.diff([*range(0, len(source), STRETCH), len(source)])
    return source


def hub_parts(spelling: str) -> tuple[str, str | None]:
    """The name or folder in hf:NAME_OR_DIR[:SPLIT], and the split."""
    rest = spelling.removeprefix("hf:")
    head, colon, tail = rest.rpartition(":")
    if colon and "/" not in tail and "\\" not in tail and not Path(rest).expanduser().exists():
        return head, tail
    return rest, None


def _load_saved(folder: Path, spelling: str) -> dict[str, Dataset]:
    import datasets

    quiet_datasets()
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise ConfigError(f"--data {spelling!r} cannot be opened: {_line(error)}") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}


def _load_tables(place: Path | str, spelling: str, options: SourceOptions) -> dict[str, Dataset]:
    import datasets

    quiet_datasets()
    if isinstance(place, Path) and not any(place.rglob("*.parquet")):
        raise ConfigError(
            f"--data {spelling!r}: neither a save_to_disk folder nor parquet files in {str(place)!r}; "
            "for a folder of image files leave out hf:"
        )
    try:
        if isinstance(place, Path):
            return dict(datasets.load_dataset("parquet", data_dir=str(place)))
        return dict(datasets.load_dataset(place, options.subset))
    except Exception as error:
        raise ConfigError(f"--data {spelling!r} cannot be opened: {_line(error)}{_hub_hint(place)}") from error


def _joined(tables: list[Dataset], spelling: str) -> Dataset:
    import datasets

    try:
        return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)
    except ValueError as error:
        raise ConfigError(f"--data {spelling!r}: its splits do not fit together: {_line(error)}") from error


def _hub_hint(place: Path | str) -> str:
    if isinstance(place, Path):
        return ""
    offline = " and HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") else ""
    return f" (no folder {place!r} here, so the name was looked up on the Hub{offline})"


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:250]


class TableSource(Source):
    """A dataset on disk, memory-mapped. The id is row-N, N the row's number: rows may have no name of their own."""

    def __init__(self, table: Dataset, name: str, options: SourceOptions, folder: Path | None) -> None:
        import datasets

        self.name, self.window, self.folder = name, options.window, folder
        where = f"--data {name!r}"
        columns = table.column_names
        typed = [key for key, kind in table.features.items() if isinstance(kind, datasets.Image)]
        wanted = options.image or (typed[0] if typed else None)
        self.image = image_column(wanted, columns, where)
        self.label = label_column(options.label, columns, table.features, where)
        self.text = find_column("caption", options.caption, columns, where)
        if self.image in typed:
            table = table.cast_column(self.image, datasets.Image(decode=False))
        self.table = table.select_columns(list(dict.fromkeys(c for c in (self.image, self.label, self.text) if c)))
        if not len(self.table):
            raise ConfigError(f"{where} has no rows")
        self._labels: SharedArrays | None = None
        if self.label is not None:
            values = table.select_columns([self.label])[self.label][:]
            kind = table.features[self.label]
            known = kind.names if isinstance(kind, datasets.ClassLabel) else None
            named = f"{where}, --source.label {options.label}" if options.label else ""
            self.classes, self._labels = class_numbers(values, known, named)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self.table[index]
        value = row[self.image]
        return Sample(
            partial(encoded_image, value, self.folder),
            self.sample_id(index),
            label_at(self._labels, index),
            caption_text(row[self.text]) if self.text else None,
            partial(more_texts, row[self.text]) if self.text else None,
        )

    def sample_id(self, index: int) -> str:
        return f"row-{index}"

    def labels(self) -> np.ndarray | None:
        return all_labels(self._labels)
