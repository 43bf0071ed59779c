"""A list of image paths: .txt (a path a line; after tabs a label and a caption) or .csv/.tsv with a header line.

Relative paths start at the list's own folder. Ten million rows are read in seconds and kept as bytes: see `strings.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.sources.base import LabelsBuilder, Sample, Source, SourceOptions, all_labels, label_at
from dino_tower.sources.columns import find_column, image_column
from dino_tower.sources.folder import missing_path
from dino_tower.sources.strings import PathsBuilder, StringsBuilder

LIST_EXTENSIONS = (".csv", ".tsv", ".txt")
BLOCK = 1 << 21  # bytes read at a time; its lines as Python objects take ten times that


def open_list(spelling: str, options: SourceOptions, split: str) -> Source:
    """Read a list; its pictures are not looked for.

    Raises:
        ConfigError: no such file, no rows, a column that is not there, or a table that does not parse.
    """
    path = Path(spelling).expanduser()
    if not path.exists():
        raise missing_path(spelling, path)
    if not path.is_file() or path.stat().st_size == 0:
        raise ConfigError(f"--data {spelling!r}: " + ("the list is empty" if path.is_file() else "not a regular file"))
    try:
        rows = _text_rows(path) if path.suffix.lower() == ".txt" else _table_rows(path, options, spelling)
        return ListSource(path, spelling, rows)
    except OSError as error:
        raise ConfigError(f"--data {spelling!r} cannot be read: {(error.strerror or str(error)).lower()}") from None


class ListSource(Source):
    """Rows of (path, label or None, caption or None); the id is the path as it stands in the list."""

    def __init__(self, path: Path, name: str, blocks: Iterator[tuple[list[bytes], list, list]]) -> None:
        self.folder, self.name = str(path.parent), name
        paths, captions = PathsBuilder(), StringsBuilder()
        labels = LabelsBuilder()
        for some_paths, some_labels, some_captions in blocks:
            paths.extend(some_paths)
            labels.extend(map(os.fsdecode, some_labels))
            captions.extend(some_captions)
        self.paths = paths.done()
        if not len(self.paths):
            raise ConfigError(f"--data {name!r}: the list has no rows")
        self.captions = captions.done() if captions.lengths else None
        self.classes, self._labels = labels.done()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        caption = None if self.captions is None else self.captions[index] or None
        return Sample(str(Path(self.folder, path)), path, label_at(self._labels, index), caption)

    def sample_id(self, index: int) -> str:
        return self.paths[index]

    def labels(self) -> np.ndarray | None:
        return all_labels(self._labels)


def _text_rows(path: Path) -> Iterator[tuple[list[bytes], list, list]]:
    """Blocks of (paths, labels, captions); labels and captions are empty lists where no line of the file has a tab."""
    with path.open("rb") as file:
        tabs = any(b"\t" in block for block in iter(lambda: file.read(BLOCK), b""))
        file.seek(0)
        if file.read(3) != b"\xef\xbb\xbf":  # what Windows editors put in front of UTF-8
            file.seek(0)
        rest = b""
        while True:
            block = file.read(BLOCK)
            lines = (rest + block).replace(b"\r\n", b"\n").split(b"\n")
            rest = lines.pop() if block else b""
            lines = [line for line in lines if line and not line.isspace()]
            if not tabs:
                yield lines, [], []
            else:
                rows = [(*line.split(b"\t", 2), b"", b"")[:3] for line in lines]
                yield [row[0] for row in rows], [row[1].strip() for row in rows], [row[2].strip() for row in rows]
            if not block:
                return


def _table_rows(path: Path, options: SourceOptions, spelling: str) -> Iterator[tuple[list[bytes], list, list]]:
    """Blocks of (paths, labels, captions) of a table with a header; the separator is the header's most frequent one."""
    import pyarrow
    from pyarrow import csv

    with path.open("rb") as file:
        header = file.readline().decode("utf-8-sig", "replace")
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    where = f"--data {spelling!r}"
    try:
        names = csv.open_csv(path, parse_options=csv.ParseOptions(delimiter=separator)).schema.names
        columns = (
            image_column(options.image, names, where),
            find_column("label", options.label, names, where),
            find_column("caption", options.caption, names, where),
        )
        wanted = list(dict.fromkeys(column for column in columns if column))
        table = csv.open_csv(
            path,
            read_options=csv.ReadOptions(block_size=BLOCK, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pyarrow.binary())
            ),
        )
        for batch in table:
            found = [batch.column(column).to_pylist() if column else [] for column in columns]
            yield found[0], [label or b"" for label in found[1]], [caption or b"" for caption in found[2]]
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{where} does not parse as a table: {' '.join(str(error).split())[:200]}") from None
