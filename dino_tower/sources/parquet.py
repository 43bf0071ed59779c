"""`hf:... --source.streaming`: parquet files, local or on the Hub, read by row groups without a copy on disk."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.sources.base import Sample, Source, SourceOptions, all_labels, label_at
from dino_tower.sources.columns import find_column, image_column
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
    import pyarrow

CACHED_BYTES = 1 << 28  # of decoded row groups, per process that reads


def open_parquet_stream(spelling: str, name: str, wanted: str | None, split: str, options: SourceOptions) -> Source:
    """Find the files of each split, choose one or all, and read the files' footers (row counts), not their rows.

    Raises:
        ConfigError: no such dataset, no parquet files in it, no such split or column.
    """
    import datasets
    import fsspec

    quiet_datasets()
    folder = Path(name).expanduser()
    local = folder.is_dir()
    try:
        if local:
            builder = datasets.load_dataset_builder("parquet", data_dir=str(folder))
        else:
            builder = datasets.load_dataset_builder(name, options.subset)
        files = {str(key): [str(file) for file in found] for key, found in (builder.config.data_files or {}).items()}
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:250]
        raise ConfigError(f"--data {spelling!r} cannot be opened: {line}") from error
    chosen, has_splits = choose_splits(list(files), wanted, split, spelling)
    read = [file for one in chosen for file in files[one]]
    other = [file for file in read if not file.endswith(".parquet")]
    if other:
        raise ConfigError(
            f"--data {spelling!r}: {other[0]!r} is not parquet, and nothing else is streamed; "
            "leave out --source.streaming"
        )
    system = fsspec.url_to_fs(read[0])[0]
    features = None if local else builder.info.features
    label = spelling if wanted else f"{spelling}:{'+'.join(chosen)}"
    source = ParquetStream(system, read, label, options, features)
    source.folder = folder if local else None
    source.has_splits = has_splits
    return source


class ParquetStream(Source):
    """Rows of parquet files, file by file. Any row can be asked for; neighbours come from the same row group."""

    folder: Path | None = None

    def __init__(self, system: Any, files: list[str], name: str, options: SourceOptions, features: Any = None) -> None:
        import datasets
        import pyarrow.parquet as pq

        self.system, self.files, self.name, self.window = system, files, name, options.window
        counts, self.groups = [], []
        schema = None
        for number, file in enumerate(files):
            try:
                with system.open(file, "rb") as handle:
                    footer = pq.read_metadata(handle)
            except Exception as error:
                raise ConfigError(f"--data {name!r}: {file!r} is not a parquet file ({str(error)[:120]})") from None
            schema = schema or footer.schema.to_arrow_schema()
            for group in range(footer.num_row_groups):
                if footer.row_group(group).num_rows:
                    counts.append(footer.row_group(group).num_rows)
                    self.groups.append((number, group))
        if not counts or schema is None:
            raise ConfigError(f"--data {name!r} has no rows")
        self.stretches = np.array(counts)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        where = f"--data {name!r}"
        typed = [field.name for field in schema if _looks_like_image(field.type)]
        wanted = options.image or (typed[0] if len(typed) == 1 else None)
        self.image = image_column(wanted, schema.names, where)
        # the types: from the Hub's card, or from what `datasets` wrote into the file
        features = features or datasets.Features.from_arrow_schema(schema)
        self.label = label_column(options.label, schema.names, features, where)
        self.text = find_column("caption", options.caption, schema.names, where)
        self._labels: SharedArrays | None = None
        self._cache: OrderedDict[int, pyarrow.Table] = OrderedDict()
        if self.label is not None:
            kind = features.get(self.label)
            known = kind.names if isinstance(kind, datasets.ClassLabel) else None
            named = f"{where}, --source.label {options.label}" if options.label else ""
            self.classes, self._labels = class_numbers(self._whole_column(self.label), known, named)

    def _whole_column(self, column: str) -> list[Any]:
        import pyarrow.parquet as pq

        values: list[Any] = []
        for file in self.files:
            with self.system.open(file, "rb") as handle:
                values += pq.read_table(handle, columns=[column]).column(column).to_pylist()
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self.starts, index) - 1
        table, row = self._group(which), index - int(self.starts[which])
        value = table.column(self.image)[row].as_py()
        text = table.column(self.text)[row].as_py() if self.text else None
        return Sample(
            encoded_image(value, self.folder),
            self.sample_id(index),
            label_at(self._labels, index),
            caption_text(text),
            partial(more_texts, text),
        )

    def _group(self, which: int) -> pyarrow.Table:
        import pyarrow.parquet as pq

        if which not in self._cache:
            number, group = self.groups[which]
            columns = [column for column in (self.image, self.text) if column]
            try:
                with self.system.open(self.files[number], "rb") as handle:
                    self._cache[which] = pq.ParquetFile(handle).read_row_group(group, columns=columns)
            except OSError as error:
                raise UnreadableImage(f"row group {group} of {self.files[number]}: {error}") from None
            while len(self._cache) > 1 and sum(table.nbytes for table in self._cache.values()) > CACHED_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(which)
        return self._cache[which]

    def sample_id(self, index: int) -> str:
        return f"row-{index}"

    def labels(self) -> np.ndarray | None:
        return all_labels(self._labels)


def _looks_like_image(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_binary(kind) or types.is_large_binary(kind):
        return True
    return types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
