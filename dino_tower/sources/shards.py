"""`tar:PATTERN`: WebDataset shards. An index of member offsets makes them map-style; nothing is unpacked.

A sample is the run of members that share the name up to the first dot: an image, and beside it .cls (label), .txt
(caption) or .json (both; of two captions the .txt counts, unless a field of the .json is named). PATTERN takes *, ?,
[..] and the braces of WebDataset: part-{000..127}.tar.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from dino_tower.errors import ConfigError, unknown
from dino_tower.images import EXTENSIONS, UnreadableImage, read_bytes
from dino_tower.sources.base import LabelsBuilder, Sample, Source, SourceOptions, all_labels, label_at
from dino_tower.sources.columns import USUAL
from dino_tower.sources.folder import missing_path
from dino_tower.sources.strings import PathsBuilder, SharedArrays


@dataclass(frozen=True)
class Member:
    """Bytes inside a shard."""

    extension: str
    offset: int
    size: int


def open_tar(spelling: str, options: SourceOptions, split: str) -> Source:
    """Index the shards: one header of 512 bytes is read per member.

    Raises:
        ConfigError: nothing matches, a file is not an uncompressed tar, or there is no image in any.
    """
    pattern = spelling.removeprefix("tar:")
    if not pattern:
        raise ConfigError(f"--data {spelling!r}: give the shards after the colon, as in tar:part-{{000..127}}.tar")
    paths = []
    for one in expand_braces(str(Path(pattern).expanduser())):
        if Path(one).is_dir():
            raise ConfigError(f"--data {spelling!r} is a folder; for the shards in it give tar:{one.rstrip('/')}/*.tar")
        matches = [one]
        if glob.has_magic(one) and not Path(one).exists():
            matches = sorted(glob.glob(one))  # noqa: PTH207 (Path.glob takes no absolute patterns)
        if not matches:
            raise ConfigError(f"--data {spelling!r}: no file matches {one!r}")
        paths += matches
    if not paths:
        raise ConfigError(f"--data {spelling!r}: a range in its braces is empty; it goes upwards, as in {{000..127}}")
    for path in paths:
        if not Path(path).exists():
            raise missing_path(spelling, Path(path))
    return TarSource(list(dict.fromkeys(paths)), spelling, options)


class TarSource(Source):
    """Images in tar files; the id is SHARD/MEMBER, SHARD relative to the folder that all shards share."""

    def __init__(self, shards: list[str], name: str, options: SourceOptions) -> None:
        self.shards, self.name, self.window = shards, name, options.window
        common = os.path.commonpath([str(Path(shard).parent) for shard in shards])
        names = PathsBuilder()
        columns = [array("q") for _ in range(6)]  # shard, offset, size, and the caption's offset, size, is it JSON
        labels = LabelsBuilder()
        counts = []
        seen: set[str] = set()
        captioned = False
        self.left_out, self.first_left_out = 0, ""  # images by their last ending, in samples without a picture
        for number, shard in enumerate(shards):
            before = len(columns[0])
            head = str(Path(shard).relative_to(common))
            for key, members in groupby(_members(shard, name), key=lambda member: member[0]):
                group = {member.extension: member for _, member in members}
                picture = _picture(group, options.image)
                seen.update(group)
                if picture is None:
                    lost = [one for one in group if f".{one.rpartition('.')[2]}" in EXTENSIONS]
                    self.left_out += len(lost)
                    if lost and not self.first_left_out:
                        self.first_left_out = f"{head}/{key}.{lost[0]}"
                    continue
                side = group.get("txt") or group.get("json")
                if options.caption is not None and "json" in group:
                    side = group["json"]
                    captioned = captioned or _field(_read(shard, side), options.caption, "caption") is not None
                row: tuple[int, ...] = (number, picture.offset, picture.size)
                row += (side.offset, side.size, side.extension == "json") if side else (0, 0, 0)
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
                names.extend([os.fsencode(f"{head}/{key}.{picture.extension}")])
                labels.extend([_label(shard, group, options.label)])
            counts.append(len(columns[0]) - before)
        if not len(columns[0]):
            if options.image is not None and seen:
                raise unknown("member extension", options.image, seen, f"--data {name!r}, --source.image")
            found = ", ".join(sorted(seen)[:8]) or "no members"
            raise ConfigError(f"--data {name!r}: no images in {len(shards)} shards; found: {found}")
        self.names, self.caption = names.done(), options.caption
        kinds = (np.int32, np.int64, np.int64, np.int64, np.int32, np.int8)
        arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        self.index = SharedArrays(*arrays)
        self.classes, self._labels = labels.done()
        if self.classes is None and options.label is not None:
            raise ConfigError(f"--data {name!r}, --source.label: no .json member has a field {options.label!r}")
        if options.caption is not None and not captioned:
            raise ConfigError(f"--data {name!r}, --source.caption: no .json member has a field {options.caption!r}")
        if options.streaming:
            self.stretches = np.array([count for count in counts if count])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        shard, offset, size, text, length, is_json = self.index.arrays
        path = self.shards[int(shard[index])]
        caption = None
        if length[index]:
            caption = partial(_caption, path, int(text[index]), int(length[index]), bool(is_json[index]), self.caption)
        payload = partial(read_bytes, path, int(offset[index]), int(size[index]))
        return Sample(payload, name, label_at(self._labels, index), caption)

    def sample_id(self, index: int) -> str:
        return self.names[index]

    def labels(self) -> np.ndarray | None:
        return all_labels(self._labels)

    def describe(self) -> str:
        if not self.left_out:
            return super().describe()
        return (
            f"{super().describe()} ({self.left_out} pictures left out, the first: {self.first_left_out}; their "
            "ending begins at the first dot of the name, unless --source.image names another)"
        )


def expand_braces(pattern: str) -> list[str]:
    """{000..012} and {a,b} as a shell expands them, leading zeros kept."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers is None:
        choices = found[1].split(",")
    else:
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [str(n).zfill(width) for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    rest = expand_braces(pattern[found.end() :])
    return [pattern[: found.start()] + choice + tail for choice in choices for tail in rest]


def _members(shard: str, name: str) -> Iterator[tuple[str, Member]]:
    """(key, member) of every file in a shard. A shard that breaks off gives what stands before the break."""
    if not Path(shard).is_file():
        raise ConfigError(f"--data {name!r}: {shard!r} is not a regular file")
    met = False
    try:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                met = True
                tar.members = []  # type: ignore[attr-defined]  # else it keeps an object per member
                folder, _, base = entry.name.rpartition("/")
                stem, dot, extension = base.partition(".")
                if entry.isfile() and dot and stem:
                    key = f"{folder}/{stem}" if folder else stem
                    yield key, Member(extension.lower(), entry.offset_data, entry.size)
    except tarfile.TarError as error:
        if met:
            return
        with Path(shard).open("rb") as file:
            packed = file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")
        wrong = "is compressed, as images are already: unpack it" if packed else f"is not a tar file ({error})"
        raise ConfigError(f"--data {name!r}: {shard!r} {wrong}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"--data {name!r}: {shard!r} cannot be read: {reason}") from None


def _picture(group: dict[str, Member], wanted: str | None) -> Member | None:
    if wanted is not None:
        return group.get(wanted.lower().lstrip("."))
    return next((member for extension, member in group.items() if f".{extension}" in EXTENSIONS), None)


def _label(shard: str, group: dict[str, Member], wanted: str | None) -> str:
    """The label as text, "" where there is none. Read at once: class numbers need every label."""
    if wanted is None and "cls" in group:
        return _read(shard, group["cls"]).strip()
    if "json" in group:
        value = _field(_read(shard, group["json"]), wanted, "label")
        return "" if value is None else str(value)
    return ""


def _read(shard: str, member: Member) -> str:
    try:
        return read_bytes(shard, member.offset, member.size).decode("utf-8", "replace") if member.size else ""
    except UnreadableImage:
        return ""  # the shard breaks off here, and so does the image that this belongs to


def _field(text: str, wanted: str | None, role: str) -> object:
    try:
        record = json.loads(text)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    names = (wanted,) if wanted is not None else USUAL[role]
    return next((record[name] for name in names if record.get(name) is not None), None)


def _caption(shard: str, offset: int, size: int, is_json: bool, wanted: str | None) -> str | None:
    text = _read(shard, Member("", offset, size)).strip()
    if is_json:
        value = _field(text, wanted, "caption")
        text = "" if value is None else str(value)
    return text or None
