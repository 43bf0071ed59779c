"""Batches of pictures with their labels: a pure function of (seed, step, rank), whatever the number of workers.

B: batch of one process; S: side of a view in pixels. An epoch is a seeded permutation; its last incomplete global batch
is dropped. Optimiser step s covers the positions [s G, (s + 1) G), G = batch x processes x accumulate; a process takes
every world-th of them, so that a run may go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from dino_tower.adapters.examples import Examples
from dino_tower.adapters.settings import ViewsConfig
from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.sources import load_batches
from dino_tower.sources.skipped import SkippedLog, TooManySkipped

ORDER, VIEW = 0, 1  # what a stream of random numbers is for
TRIES = 50  # unreadable pictures in a row for one place of a batch


@dataclass(frozen=True)
class View:
    """A part of a picture, in pixels, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


def draw_view(config: ViewsConfig, width: int, height: int, rng: np.random.Generator) -> View:
    """A part of random size and place, as torchvision's RandomResizedCrop; what does not fit in ten tries is cut
    from the middle, as large as the ratio allows."""
    logs = np.log(config.ratio)
    for _ in range(10):
        area = rng.uniform(*config.scale) * width * height
        ratio = float(np.exp(rng.uniform(*logs)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(rng.integers(0, room + 1)) for room in (width - w, height - h))
            return View(left, top, w, h, bool(rng.random() < config.flip))
    ratio = min(max(width / height, config.ratio[0]), config.ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return View((width - w) // 2, (height - h) // 2, w, h, bool(rng.random() < config.flip))


def cut(pixels: np.ndarray, view: View, size: int, exact: bool) -> np.ndarray:
    """[H, W, ...] to [S, S, ...]. exact: the nearest value (of labels); else averaged down or interpolated up."""
    part = pixels[view.top : view.top + view.height, view.left : view.left + view.width]
    if exact:
        way = cv2.INTER_NEAREST_EXACT
    else:
        way = cv2.INTER_AREA if size < min(view.width, view.height) else cv2.INTER_LINEAR
    resized = cv2.resize(part, (size, size), interpolation=way)
    return np.ascontiguousarray(resized[:, ::-1] if view.flip else resized)


@dataclass
class Batch:
    """pixels uint8 [B, S, S, 3]; labels [B] or [B, S, S]; skipped: (id, reason) of pictures that others stand in for.

    `failure`: what is wrong with the data, if anything is; then there are no pixels.
    """

    pixels: Tensor
    labels: Tensor
    ids: list[str]
    skipped: list[tuple[str, str]]
    failure: str = ""


@dataclass(frozen=True)
class Key:
    """Which samples a micro-batch of one process reads: positions int64 [B] in the order of `epoch`."""

    epoch: int
    positions: np.ndarray


def batch_keys(
    *, batch_size: int, rank: int, world: int, accumulate: int, start: int, stop: int, steps_per_epoch: int
) -> Iterator[Key]:
    """The keys of one process from optimiser step `start` to `stop`, `accumulate` for each step."""
    for step in range(start, stop):
        epoch, place = divmod(step, steps_per_epoch)
        for micro in range(accumulate):
            first = (place * accumulate + micro) * batch_size * world + rank
            yield Key(epoch, first + world * np.arange(batch_size))


def random_numbers(seed: int, use: int, *counter: int) -> np.random.Generator:
    """Numbers for one use and up to three counters: unlike streams for unlike words, by construction."""
    words = [0, *counter, 0, 0, 0][:4]
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, use], counter=words))


class BatchMaker:
    """Turns a Key into a Batch, in whatever process it finds itself."""

    def __init__(
        self, examples: Examples, views: ViewsConfig, size: int, label_type: torch.dtype, seed: int, world: int
    ) -> None:
        self.examples, self.views, self.size, self.label_type = examples, views, size, label_type
        self.seed, self.world = seed, world
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": (-1, np.empty(0, np.int64))}  # cheaper to draw again than to send

    def order(self, epoch: int) -> np.ndarray:
        """int64 [N], a permutation."""
        if self._order[0] != epoch:
            self._order = (epoch, random_numbers(self.seed, ORDER, epoch).permutation(len(self.examples)))
        return self._order[1]

    def __call__(self, key: Key) -> Batch:
        """Read, cut and stack. What cannot be read is replaced by the next of the same process's order."""
        skipped: dict[str, str] = {}
        made: list[tuple[np.ndarray, Any, str]] = []
        try:
            made = [self._first_readable(key.epoch, int(position), skipped) for position in key.positions]
        except ConfigError as error:  # told as a value: what a worker process raises arrives with its whole stack
            none = torch.empty(0)
            return Batch(none, none, [], [*skipped.items()], str(error))
        pixels, labels, ids = zip(*made, strict=True)
        stacked = torch.from_numpy(np.stack([np.asarray(label) for label in labels])).to(self.label_type)
        return Batch(torch.from_numpy(np.stack(pixels)), stacked, list(ids), [*skipped.items()])

    def _first_readable(self, epoch: int, position: int, skipped: dict[str, str]) -> tuple[np.ndarray, Any, str]:
        order = self.order(epoch)
        for attempt in range(min(TRIES, len(order))):
            index = int(order[(position + attempt * self.world) % len(order)])
            name = self.examples.pictures.sample_id(index)
            try:
                picture = self.examples.picture(index)
            except UnreadableImage as error:
                skipped[name] = error.reason
                continue
            rng = random_numbers(self.seed, VIEW, epoch, index, attempt)
            view = draw_view(self.views, picture.width, picture.height, rng)
            label = self.examples.label(index, picture)
            if isinstance(label, np.ndarray):
                label = cut(label, view, self.size, exact=True)
            return cut(np.asarray(picture), view, self.size, exact=False), label, name
        name, reason = next(reversed(skipped.items()))
        raise ConfigError(f"{len(skipped)} pictures in a row could not be read; the last: {name}: {reason}")


def batches(
    maker: BatchMaker, keys: Iterator[Key], workers: int, skipped_log: Path | None, max_skipped: float
) -> Generator[Batch]:
    """The batches of `keys`, in order. Close the iterator to end the workers.

    Raises ConfigError for a label that does not fit its picture; TooManySkipped.
    """
    log = SkippedLog(skipped_log, max_skipped, len(maker.examples))
    made = load_batches(maker, keys, workers=workers)
    try:
        for batch in made:
            log.record(batch.skipped)
            if batch.failure:
                raise TooManySkipped(batch.failure)
            yield batch
    finally:
        made.close()
