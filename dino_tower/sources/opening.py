"""From what the user typed after --data to a source, or to one line that says what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dino_tower.errors import ConfigError, unknown
from dino_tower.images import UnreadableImage
from dino_tower.sources.base import Part, Source, SourceOptions
from dino_tower.sources.folder import open_folder
from dino_tower.sources.generated import open_scenes
from dino_tower.sources.hub import hub_parts, open_hub
from dino_tower.sources.lists import LIST_EXTENSIONS, open_list
from dino_tower.sources.mixture import Mixture
from dino_tower.sources.shards import open_tar

SPLITS = ("train", "test", "all")
HELD_OUT = 0.2  # of the images, where the data has no test split of its own

# prefix before ":" -> opener(spelling, options, split). Without a prefix: a list by its extension, else a folder
OPENERS: dict[str, Callable[[str, SourceOptions, str], Source]] = {
    "hf": open_hub,
    "tar": open_tar,
    "scenes": open_scenes,
}


# opener -> what it reads of these settings; the others concern every source
READS: dict[Callable[[str, SourceOptions, str], Source], tuple[str, ...]] = {
    open_folder: ("split",),
    open_list: ("image", "label", "caption"),
    open_hub: ("image", "label", "caption", "split", "subset", "streaming"),
    open_tar: ("image", "label", "caption", "streaming"),
    open_scenes: ("split",),
}


def open_source(spelling: str, options: SourceOptions | None = None, split: str = "train") -> Source:
    """Open one SOURCE. `split`: "train", "test" or "all" of it, where it has such parts; else all of it.

    Raises:
        ConfigError: one line naming what was typed, what was found there, and the fix.
    """
    options = options or SourceOptions()
    source = _open(str(spelling), options, split)
    _refuse_unread([str(spelling)], options)
    return source


def _open(spelling: str, options: SourceOptions, split: str) -> Source:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if options.max_samples is not None and options.max_samples < 1:
        raise ConfigError(f"--source.max-samples {options.max_samples}: give 1 or more")
    try:
        source = _find_opener(spelling)(spelling, options, split)
    except PermissionError as error:
        raise ConfigError(f"--data {spelling!r}: permission denied: {error.filename}") from None
    if options.split is not None:
        source.has_splits = False  # the user chose: train and test are both to come out of this part
    if options.max_samples is not None and options.max_samples < len(source):
        chosen = np.sort(np.random.default_rng(0).permutation(len(source))[: options.max_samples])
        source = Part(source, chosen, f"{source.name} ({options.max_samples} of {len(source)})")
    return source


def _find_opener(spelling: str) -> Callable[[str, SourceOptions, str], Source]:
    prefix, colon, _ = spelling.partition(":")
    path = Path(spelling).expanduser()
    if not spelling:
        raise ConfigError("--data is empty; give a folder, a list, hf:NAME, tar:PATTERN or scenes")
    if prefix in OPENERS and (colon or (prefix == "scenes" and not path.is_dir())):
        return OPENERS[prefix]
    if colon and "/" not in prefix and len(prefix) > 1 and not path.exists():
        raise unknown("kind of source", prefix + ":", [name + ":" for name in OPENERS], f"--data {spelling!r}")
    return open_list if path.suffix.lower() in LIST_EXTENSIONS and not path.is_dir() else open_folder


def _refuse_unread(spellings: Sequence[str], options: SourceOptions) -> None:
    """Raise ConfigError for a setting that no source reads: it would do nothing, and nobody would know."""
    nothing = SourceOptions()
    taken = {setting for spelling in spellings for setting in _settings_read(spelling)}
    for setting in READS[open_hub]:
        value = getattr(options, setting)
        if value == getattr(nothing, setting) or setting in taken or (setting, value) == ("split", "all"):
            continue  # all of it is what a source without splits gives anyway
        takes = f"takes {', '.join(f'--source.{one}' for one in sorted(taken))}" if taken else "has no columns to name"
        which = f"--data {spellings[0]!r}, which {takes}" if len(spellings) == 1 else "any of the sources given"
        raise ConfigError(f"--source.{setting} {value} says nothing about {which}; leave it out")


def _settings_read(spelling: str) -> list[str]:
    opener = _find_opener(spelling)
    reads = list(READS[opener])
    if opener is open_list and spelling.lower().endswith(".txt"):
        return []  # its columns have no names
    if opener is open_hub and Path(hub_parts(spelling)[0]).expanduser().is_dir():
        reads.remove("subset")
    return reads


def open_sources(
    spellings: str | Sequence[str],
    options: SourceOptions | None = None,
    split: str = "train",
    hold_out: float | None = None,
) -> Source:
    """Open one or more --data as one source.

    Where the data has no test split of its own, a share `hold_out` of the samples, chosen by a hash of their ids, plays
    it: 0 (the default for "train" and "all") uses every sample for training; "test" takes HELD_OUT unless told.
    To evaluate, open "train" and "test" with the same `hold_out`, and let `labels_among` make their classes agree.
    """
    options = options or SourceOptions()
    spellings = [str(one) for one in ([spellings] if isinstance(spellings, (str, Path)) else spellings)]
    if not spellings:
        raise ConfigError("--data is missing; give a folder, a list, hf:NAME, tar:PATTERN or scenes")
    share = hold_out if hold_out is not None else HELD_OUT if split == "test" else 0.0
    sources = []
    for spelling in spellings:
        source = _open(spelling, options, split)
        if share and split != "all" and not source.has_splits:
            source = hash_split(source, split, share)
        sources.append(source)
    _refuse_unread(spellings, options)
    return sources[0] if len(sources) == 1 and not options.weights else Mixture(sources, options.weights)


def hash_split(source: Source, split: str, share: float = HELD_OUT) -> Source:
    """The "test" samples, whose id hashes below `share`, or the others.

    Adding images moves none of the old ones where an id is a name; rows are numbered, so there only behind the last.
    """
    limit = int(share * 2**32)
    ids = (source.sample_id(index) for index in range(len(source)))
    draws = (hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=4).digest() for name in ids)
    test = np.fromiter((int.from_bytes(draw, "big") < limit for draw in draws), bool, len(source))
    chosen = np.flatnonzero(test if split == "test" else ~test)
    if not len(chosen):
        raise ConfigError(f"--data {source.name!r} has too few images ({len(source)}) to split a {split} part off")
    return Part(source, chosen, f"{source.name} ({split}: {len(chosen)} of {len(source)} by hash)")


def probe(source: Source, count: int = 8, tries: int = 64) -> list[tuple[str, tuple[int, int]]]:
    """Read `count` samples, evenly spread, before anything is written: their ids and (width, height).

    Raises:
        ConfigError: of `tries` samples not one could be read; the line gives the first one's reason.
    """
    read: list[tuple[str, tuple[int, int]]] = []
    reasons: list[str] = []
    few = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    more = np.linspace(0, len(source) - 1, min(tries, len(source))).astype(int)
    for index in dict.fromkeys([*few.tolist(), *more.tolist()]):
        if len(read) + len(reasons) >= len(few) and read:
            break
        try:
            sample = source[index]
            read.append((sample.id, sample.sized(at_least=(1, 1))[1]))
        except UnreadableImage as error:
            reasons.append(f"{source.sample_id(index)}: {error.reason}")
    if not read:
        raise ConfigError(f"--data {source.name!r}: none of {len(reasons)} images tried could be read; {reasons[0]}")
    return read
