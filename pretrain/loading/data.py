"""The training loader: a pure function of (seed, start position) for any number of workers, by fork or by spawn.

B: batch of one rank; V: local views; S: size of a view in pixels. The order of samples is `order.py`'s, what is drawn
for them beside their views `draws.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.pretrain.crops.views import CropsConfig, at_least, draw_views, make_views, view_sizes
from dino_tower.pretrain.loading.draws import Draw, Place, draw_all
from dino_tower.pretrain.loading.order import BatchKey, Order, batch_keys, epoch_order, sample_rng, steps_in_epoch
from dino_tower.sources import NO_LABEL, Mixture, Sample, Source, load_batches
from dino_tower.sources.skipped import SkippedLog, TooManySkipped
from dino_tower.sources.workers import read_ahead

PREFETCH = 2  # batches that each worker prepares ahead
SHARED_MEMORY = "/dev/shm"
READ_AHEAD = 4  # batches that the thread of a streamed source stays ahead

MakeViews = Callable[[Sample, np.random.Generator], list[np.ndarray]]


@dataclass
class Batch:
    """One micro-step's views: first and second global, then V locals, or the first ones, each uint8 [B, S, S, 3]."""

    views: list[Tensor]
    ids: list[str]
    labels: Tensor  # int64 [B], -1 where there is none
    positions: np.ndarray  # int64 [B] in the epoch's order
    epoch: int
    skipped: list[tuple[str, str]]  # (id, reason); others stand in for these, unless there are no views
    captions: list[str] = field(default_factory=list)  # if they are asked for
    drawn: dict[str, Tensor] = field(default_factory=dict)  # [B, ...] by name

    def pin_memory(self) -> Batch:
        """Page-locked copies, for DataLoader(pin_memory=True)."""
        views, drawn = [view.pin_memory() for view in self.views], {k: v.pin_memory() for k, v in self.drawn.items()}
        return replace(self, views=views, drawn=drawn, labels=self.labels.pin_memory())


@dataclass(frozen=True)
class CropViews:
    """Read a sample and cut its views, or the first `count`: list of uint8 [S, S, 3]. Raises UnreadableImage.

    All are drawn, so that a view is the same however many are cut.
    """

    config: CropsConfig
    count: int | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> list[np.ndarray]:
        image, (width, height) = sample.sized(at_least(self.config))
        return make_views(image, draw_views(self.config, width, height, rng)[: self.count], self.config)


@dataclass(frozen=True)
class DrawnKey:
    """What a worker is sent: a BatchKey, the order's (index, repeat) at its positions and, of a stream, the samples."""

    key: BatchKey
    drawn: list[tuple[int, int]]
    samples: list[Sample | UnreadableImage] | None = None


@dataclass(frozen=True)
class Beside:
    """What a sample brings beside its views: what the draws draw, and its caption, or one of its texts, if asked."""

    draws: tuple[Draw, ...] = ()
    captions: Literal["none", "first", "any"] = "none"


NOTHING = Beside()


@dataclass(frozen=True)
class Made:
    """One sample, read, cut and drawn."""

    sample: Sample
    views: list[np.ndarray]
    drawn: dict[str, np.ndarray]
    caption: str | None


class BatchMaker:
    """Turns a DrawnKey into a Batch, in whatever process it finds itself.

    An unreadable sample is replaced by the next readable one of the same rank's order, which keeps its own place too.
    `tries` failures in a row for one place give a Batch without views, whose `skipped` says why.
    """

    def __init__(
        self, source: Source, views: MakeViews, seed: int, world: int, tries: int, beside: Beside, global_batch: int
    ) -> None:
        self.source, self.views, self.seed, self.world, self.tries = source, views, seed, world, tries
        self.beside, self.global_batch = beside, global_batch
        self._order: Order | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None}  # cheaper to draw again than to send

    def order(self, epoch: int) -> Order:
        """The epoch's order, drawn when first needed and kept until another epoch is asked for."""
        if self._order is None or self._order.epoch != epoch:
            self._order = epoch_order(self.source, self.seed, epoch)
        return self._order

    def draw(self, key: BatchKey, read: bool) -> DrawnKey:
        """Look the key's positions up in the order; `read` fetches the undecoded samples too."""
        order = self.order(key.epoch)
        drawn = [order.at(position) for position in key.positions.tolist()]
        return DrawnKey(key, drawn, [self._fetch(index) for index, _ in drawn] if read else None)

    def __call__(self, work: DrawnKey) -> Batch:
        """Read, crop and stack."""
        made: list[Made] = []
        skipped: dict[str, str] = {}
        for place in range(len(work.drawn)):
            found = self._first_readable(work, place, skipped)
            if found is None:
                none = torch.empty(0, dtype=torch.int64)
                return Batch([], [], none, work.key.positions, work.key.epoch, [*skipped.items()])
            made.append(found)
        labels = [NO_LABEL if one.sample.label is None else one.sample.label for one in made]
        return Batch(
            [torch.from_numpy(np.stack(same)) for same in zip(*(one.views for one in made), strict=True)],
            [one.sample.id for one in made],
            torch.tensor(labels, dtype=torch.int64),
            work.key.positions,
            work.key.epoch,
            [*skipped.items()],
            [one.caption for one in made if one.caption is not None],
            {name: torch.from_numpy(np.stack([one.drawn[name] for one in made])) for name in made[0].drawn},
        )

    def _first_readable(self, work: DrawnKey, place: int, skipped: dict[str, str]) -> Made | None:
        index, repeat = work.drawn[place]
        sample = self._fetch(index) if work.samples is None else work.samples[place]
        position = int(work.key.positions[place])
        for attempt in range(self.tries):
            if attempt:
                order = self.order(work.key.epoch)
                index, repeat = order.at((position + attempt * self.world) % len(order))
                sample = self._fetch(index)
            try:
                if isinstance(sample, UnreadableImage):
                    raise sample
                # `attempt` keeps a stand-in's crops apart from those it gets at its own place.
                at = Place(self.seed, work.key.epoch, index, repeat + attempt, position, self.global_batch)
                views = self.views(sample, sample_rng(self.seed, at.epoch, at.index, at.repeat))
                return Made(sample, views, draw_all(self.beside.draws, at), self._caption(sample, at))
            except UnreadableImage as error:
                skipped[self.source.sample_id(index)] = error.reason
        return None

    def _caption(self, sample: Sample, at: Place) -> str | None:
        if self.beside.captions == "none":
            return None
        texts = sample.texts if self.beside.captions == "any" else tuple(filter(None, [sample.caption]))
        if not texts:
            raise UnreadableImage("no caption")
        return texts[int(at.rng().integers(len(texts)))]

    def _fetch(self, index: int) -> Sample | UnreadableImage:
        try:
            return self.source[index]
        except UnreadableImage as error:
            return error


def build_loader(
    source: Source,
    crops: CropsConfig | MakeViews,
    *,
    views: int | None = None,
    beside: Beside = NOTHING,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    start_step: int = 0,
    total_steps: int,
    steps_per_epoch: int | None = None,
    workers: int = 0,
    start_method: str | None = None,
    skipped_log: Path | None = None,
    max_skipped: float = 0.05,
    pin_memory: bool = False,
) -> Generator[Batch]:
    """Yield the Batches of one rank for the optimiser steps start_step .. total_steps - 1, `accumulate` for each step.

    `crops` is a configuration, of whose views the first `views` are cut, or a function (sample, rng) -> list of uint8
    [S, S, 3]; `beside` says what a sample
    brings beside these views (one without a caption that is asked for is unreadable). `steps_per_epoch` defaults to
    all that the source has. Global random states are neither read nor changed. Close the iterator to end the workers.

    Raises:
        ConfigError: fewer samples than one global batch; TooManySkipped: more unreadable images than `max_skipped` (a
            number, or below 1 a share) allows. Both in the main process.
    """
    if workers and isinstance(crops, CropsConfig):
        check_shared_memory(crops, batch_size, workers, views=views)
    whole = steps_in_epoch(len(source), batch_size * world * accumulate)
    log = SkippedLog(skipped_log, max_skipped, len(source))
    cut = CropViews(crops, views) if isinstance(crops, CropsConfig) else crops
    tries, global_batch = min(log.limit + 1, len(source)), batch_size * world * accumulate
    maker = BatchMaker(source, cut, seed, world, tries, beside, global_batch)
    keys = batch_keys(
        batch_size=batch_size,
        rank=rank,
        world=world,
        accumulate=accumulate,
        start_step=start_step,
        total_steps=total_steps,
        steps_per_epoch=min(steps_per_epoch or whole, whole),
    )
    parts = source.sources if isinstance(source, Mixture) else (source,)
    streamed = any(part.stretches is not None for part in parts)
    drawn: Iterator[DrawnKey] = (maker.draw(key, streamed) for key in keys)
    if streamed:  # one thread of the process reads in long runs, workers only decode
        drawn = read_ahead(drawn, READ_AHEAD)
    return _recorded(
        load_batches(
            maker, drawn, workers=workers, start_method=start_method, prefetch=PREFETCH, pin_memory=pin_memory
        ),
        log,
    )


def check_shared_memory(
    crops: CropsConfig, batch_size: int, workers: int, place: str = SHARED_MEMORY, views: int | None = None
) -> None:
    """Containers come with 64 MB of shared memory, and a worker that finds no room dies of a bus error hours later.

    Raises:
        ConfigError: the batches that workers prepare ahead do not fit.
    """
    if not Path(place).is_dir():
        return
    state = os.statvfs(place)
    free = state.f_bavail * state.f_frsize
    needed = 3 * sum(side**2 for side in view_sizes(crops, views)) * batch_size * (PREFETCH * workers + 1)
    if needed > free:
        raise ConfigError(
            f"--workers {workers} need {needed // 2**20 + 1} MB of shared memory and {place} has {free // 2**20} MB "
            "free: take fewer workers, or give the container more (docker run --shm-size=8g)"
        )


def _recorded(batches: Generator[Batch], log: SkippedLog) -> Generator[Batch]:
    """The same batches; what they skipped goes to the log, which ends the run when it is too much."""
    try:
        for batch in batches:
            log.record(batch.skipped)
            if not batch.views:
                name, reason = batch.skipped[-1]
                count = len(batch.skipped)
                raise TooManySkipped(f"{count} images in a row could not be read; the last: {name}: {reason}")
            yield batch
    finally:
        batches.close()
