"""Millions of strings in a few numpy arrays: no Python object each, nothing that forked workers would copy on write.

A spawned worker gets large arrays as one memory-mapped temporary file that all workers share, not as a copy each.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

INLINE_BYTES = 1 << 23  # smaller arrays travel inside the pickle
SPACING = 64  # strings from one known start to the next: 4 bytes each to find them instead of 12
MAX_FOLDERS = 1 << 16


class SharedArrays:
    """One-dimensional arrays that are pickled as the name of a file when they are large."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = arrays
        self._file: Path | None = None

    def __reduce__(self) -> tuple:
        if sum(part.nbytes for part in self.arrays) <= INLINE_BYTES:
            return SharedArrays, self.arrays
        if self._file is None:
            handle, name = tempfile.mkstemp(prefix="dino-tower-index-")
            with os.fdopen(handle, "wb") as file:
                for part in self.arrays:
                    part.tofile(file)
                    file.write(bytes(-part.nbytes % 8))
            self._file = Path(name)
            # A forked child must leave the file alone: it is its parent's.
            weakref.finalize(self, _remove, self._file, os.getpid())
        return _mapped, (str(self._file), [(part.dtype.str, len(part)) for part in self.arrays])


def _mapped(path: str, layout: list[tuple[str, int]]) -> SharedArrays:
    arrays, offset = [], 0
    for kind, count in layout:
        arrays.append(np.memmap(path, kind, "r", offset, (count,)) if count else np.empty(0, kind))
        offset += arrays[-1].nbytes + -arrays[-1].nbytes % 8
    return SharedArrays(*arrays)


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)


class Strings:
    """An immutable sequence of byte strings, decoded as file names are (undecodable bytes survive the round trip).

    parts: data uint8, the strings back to back; lengths int32 [N]; anchors int64, where every SPACING-th string starts.
    """

    def __init__(self, parts: SharedArrays) -> None:
        self.parts = parts
        self.data, self.lengths, self.anchors = parts.arrays

    @classmethod
    def of(cls, values: Iterable[str | bytes]) -> Strings:
        """Pack strings one after the other."""
        builder = StringsBuilder()
        builder.extend([os.fsencode(value) for value in values])
        return builder.done()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index - index % SPACING
        start = int(self.anchors[index // SPACING]) + int(self.lengths[first:index].sum())
        return os.fsdecode(self.data[start : start + int(self.lengths[index])].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple:
        return Strings, (self.parts,)


class StringsBuilder:
    """Grows the bytes of a Strings in place: at no time are there two copies of them."""

    def __init__(self) -> None:
        self.data, self.lengths = bytearray(), array("i")

    def extend(self, values: list[bytes]) -> None:
        """Add strings at the end."""
        self.data += b"".join(values)
        self.lengths.extend(map(len, values))

    def done(self) -> Strings:
        """The finished sequence; the builder is of no use afterwards."""
        lengths = _frozen(self.lengths, np.int32)
        if not len(lengths):
            return Strings(SharedArrays(np.empty(0, np.uint8), lengths, np.empty(0, np.int64)))
        totals = np.add.reduceat(lengths, np.arange(0, len(lengths), SPACING), dtype=np.int64)
        return Strings(SharedArrays(_frozen(self.data, np.uint8), lengths, np.cumsum(totals) - totals))


class Paths:
    """File paths, each folder kept once. folder_of: uint16 [N] into `folders` (with the final "/"), 0 being ""."""

    def __init__(self, names: Strings, folder_of: np.ndarray, folders: Strings) -> None:
        self.names, self.folders = names, folders
        self._shared = SharedArrays(folder_of)

    @property
    def folder_of(self) -> np.ndarray:
        return self._shared.arrays[0]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return self.folders[int(self.folder_of[index])] + self.names[index]


class PathsBuilder:
    """Grows a Paths. After MAX_FOLDERS folders, paths in further ones are kept whole."""

    def __init__(self) -> None:
        self.names, self.folder_of = StringsBuilder(), array("H")
        self.numbers: dict[bytes, int] = {b"": 0}

    def extend(self, paths: list[bytes]) -> None:
        """Add paths (separator "/") at the end."""
        numbers = self.numbers
        cuts = [path.rfind(b"/") + 1 for path in paths]
        heads = [path[:cut] for path, cut in zip(paths, cuts, strict=True)]
        for head in dict.fromkeys(heads):
            if head not in numbers and len(numbers) < MAX_FOLDERS:
                numbers[head] = len(numbers)
        self.folder_of.extend([numbers.get(head, 0) for head in heads])
        if len(numbers) == MAX_FOLDERS:
            cuts = [cut if head in numbers else 0 for cut, head in zip(cuts, heads, strict=True)]
        self.names.extend([path[cut:] for path, cut in zip(paths, cuts, strict=True)])

    def done(self) -> Paths:
        """The finished sequence; the builder is of no use afterwards."""
        return Paths(self.names.done(), _frozen(self.folder_of, np.uint16), Strings.of(self.numbers))


def _frozen(values: array | bytearray, kind: type) -> np.ndarray:
    return np.frombuffer(values, kind) if len(values) else np.empty(0, kind)
