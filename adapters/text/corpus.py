"""Pictures with what is said about them: texts in memory, the frozen tower's tokens too where they fit.

P pictures, G of them in a step over all processes, k texts of each, h x w the patch grid, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.sources import Source, load_batches
from dino_tower.tokens import Tokens
from dino_tower.tower import Tower

READ_AT_ONCE = 32  # pictures that go through the frozen tower together while the cache is filled
ORDER, TEXTS = range(2)  # what a stream of random numbers is for


@dataclass
class Corpus:
    """The pictures of a source that can be read and have a text. `cached`: their tokens, or None where too large."""

    source: Source
    indices: np.ndarray  # int64 [P], in the source
    texts: list[tuple[str, ...]]  # of each picture, the caption first
    cached: Tokens | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (id, reason)
    silent: int = 0  # pictures without a text, left out

    def __len__(self) -> int:
        return len(self.texts)


class Draw(NamedTuple):
    """What all processes read in one step, in order of rank: rows [G] of the corpus and k texts of each, one by one."""

    rows: np.ndarray
    texts: list[str]

    def positives(self, corpus: Corpus) -> Tensor:
        """bool [G, G k]: whether a text is one of those that a picture has, its own or the same words."""
        columns: dict[str, list[int]] = {}
        for column, text in enumerate(self.texts):
            columns.setdefault(text, []).append(column)
        found = torch.zeros(len(self.rows), len(self.texts), dtype=torch.bool)
        for place, row in enumerate(self.rows.tolist()):
            for text in corpus.texts[row]:
                found[place, columns.get(text, [])] = True
        return found


def draw(corpus: Corpus, seed: int, step: int, batch: int, world: int, texts: int) -> Draw:
    """The pictures and texts of a step, a function of (seed, step) and the number of processes alone.

    An epoch is a permutation, whose last incomplete batch is left out; its stretches go to the ranks in turns, so that
    any number of processes sees the same pictures in a step. Texts are drawn anew each time.
    """
    total = batch * world
    epoch, place = divmod(step, len(corpus) // total)
    order = _permutation(seed, epoch, len(corpus))[place * total : (place + 1) * total]
    shares = _rng(seed, TEXTS, step).random((total, texts))
    by_rank = np.concatenate([np.arange(rank, total, world) for rank in range(world)])
    drawn = [corpus.texts[order[i]][int(share * len(corpus.texts[order[i]]))] for i in by_rank for share in shares[i]]
    return Draw(order[by_rank], drawn)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return _rng(seed, ORDER, epoch).permutation(count)


def _rng(seed: int, use: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, use], counter=[0, number, 0, 0]))


def read_corpus(
    source: Source,
    tower: Tower,
    cache_gib: float,
    workers: int = 0,
    say: Callable[[str], None] = print,
    most: int | None = None,
    seed: int = 0,
    captions: bool = False,
) -> Corpus:
    """Read every picture and its texts once; keep the tower's tokens if they take at most `cache_gib`.

    most: as many as the run will show; of a larger source about so many, drawn by `seed`, are read (a stream to its
    end). captions: no text of a picture but its caption. Unreadable pictures and those without a text are left out.
    Raises ConfigError where none is left, and where the tower's processor gives pictures of unlike sizes.
    """
    corpus = Corpus(source, np.zeros(0, np.int64), [])
    kept: list[int] = []
    store: Tokens | None = None  # room for all of them, made when the first are seen
    fits = True
    enough, order = len(source), np.arange(len(source))
    if most is not None and most < len(source) and source.stretches is None:
        enough, order = most, _permutation(seed, 0, len(source))
    room = min(len(source), enough + READ_AT_ONCE)  # the last reading may bring more than enough
    keys = (order[start : start + READ_AT_ONCE] for start in range(0, len(order), READ_AT_ONCE))
    batches = load_batches(_Read(source, captions), keys, workers=workers)
    while len(kept) < enough and (batch := next(batches, None)) is not None:
        images, first = [], len(kept)
        for index, image, texts, reason in batch:
            if image is None:
                corpus.skipped.append((source.sample_id(index), reason))
            elif not texts:
                corpus.silent += 1
            else:
                images.append(image)
                kept.append(index)
                corpus.texts.append(texts)
        if images and fits:
            found = tokens_of(tower, images)
            if store is None:
                fits = _gib(found, room) <= cache_gib
                say(_where(found, room, fits))
                store = _room(found, room) if fits else found
            if fits:
                _fill(store, found, first)
    batches.close()
    if not corpus.texts:
        raise ConfigError(_nothing(corpus))
    corpus.indices = np.array(kept, np.int64)
    if fits and store is not None:
        corpus.cached = Tokens(store.patches[: len(kept)], None if store.cls is None else store.cls[: len(kept)])
    return corpus


def tokens_of(tower: Tower, images: Sequence[Image.Image]) -> Tokens:
    """Patches [B, h, w, D] and class tokens [B, D]; ConfigError for pictures whose grids differ."""
    found = tower(images)
    if isinstance(found, list):
        raise ConfigError(f"{tower.name}: its processor leaves pictures at unlike sizes; set --size N")
    return found


def token_batches(corpus: Corpus, tower: Tower, rows: Iterable[np.ndarray], workers: int = 0) -> Generator[Tokens]:
    """The tokens of each entry of `rows` (int [b], places in the corpus), from memory or through the tower."""
    if corpus.cached is not None:
        patches, cls = corpus.cached
        for chosen in rows:
            at = torch.from_numpy(chosen)
            yield Tokens(patches[at], None if cls is None else cls[at])
        return
    for batch in load_batches(_Read(corpus.source), (corpus.indices[chosen] for chosen in rows), workers=workers):
        gone = next(((index, reason) for index, image, _, reason in batch if image is None), None)
        if gone is not None:
            raise ConfigError(f"{corpus.source.sample_id(gone[0])}: could be read before and cannot now: {gone[1]}")
        yield tokens_of(tower, [image for _, image, _, _ in batch])


@dataclass(frozen=True)
class _Read:
    """(index, picture or None, texts, why there is no picture) of some samples."""

    source: Source
    captions: bool = False  # no other texts

    def __call__(self, indices: np.ndarray) -> list[tuple[int, Image.Image | None, tuple[str, ...], str]]:
        read: list[tuple[int, Image.Image | None, tuple[str, ...], str]] = []
        for index in indices.tolist():
            try:
                sample = self.source[index]
                texts = replace(sample, more=None).texts if self.captions else sample.texts
                read.append((index, sample.image(), texts, ""))
            except UnreadableImage as error:
                read.append((index, None, (), error.reason))
        return read


def _room(like: Tokens, count: int) -> Tokens:
    cls = None if like.cls is None else like.cls.new_empty((count, *like.cls.shape[1:]), device="cpu")
    return Tokens(like.patches.new_empty((count, *like.patches.shape[1:]), device="cpu"), cls)


def _fill(store: Tokens, found: Tokens, first: int) -> None:
    if found.patches.shape[1:] != store.patches.shape[1:]:
        raise ConfigError("the tower's processor leaves pictures at unlike sizes; set --size N")
    store.patches[first : first + len(found.patches)] = found.patches
    if store.cls is not None and found.cls is not None:
        store.cls[first : first + len(found.cls)] = found.cls


def _gib(tokens: Tokens, pictures: int) -> float:
    """Memory of the tokens of so many pictures."""
    parts = [part for part in tokens if part is not None]
    return sum(part[0].numel() * part.element_size() for part in parts) * pictures / 2**30


def _where(tokens: Tokens, pictures: int, fits: bool) -> str:
    grid = " x ".join(map(str, tokens.patches.shape[1:3]))
    kept = "kept in memory" if fits else "computed in each step (--cache-gib)"
    return f"tokens       {grid} patches a picture, {_gib(tokens, pictures):.2f} GiB of {pictures} pictures, {kept}"


def _nothing(corpus: Corpus) -> str:
    name = corpus.source.name
    if corpus.silent:
        return (
            f"--data {name!r}: none of {corpus.silent} pictures has a caption; name its column with --source.caption, "
            "or give a source that has one (.csv, hf:, tar:, scenes)"
        )
    reason = f"; {corpus.skipped[0][0]}: {corpus.skipped[0][1]}" if corpus.skipped else ""
    return f"--data {name!r}: none of {len(corpus.skipped)} pictures could be read{reason}"
