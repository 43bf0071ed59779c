"""In which order an epoch reads its samples: a pure function of (seed, epoch), the same for every rank and worker.

n: samples of an epoch; G: global batch = batch * world * accumulate.
Optimiser step s covers the positions [s G, (s + 1) G); its micro-step m a block of batch * world of them, of which rank
r takes r, r + world, ... So a run that goes on with another number of ranks sees the same samples in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.sources import Mixture, Source

SAMPLE, ORDER, CHOICE, DRAW, STEP = range(5)  # what a stream of random numbers is for
MAX_LANES = 64
PER_LANE = 4  # with fewer stretches each, lanes would differ much in length, and leave long runs to the end


def sample_rng(seed: int, epoch: int, index: int, repeat: int = 0) -> np.random.Generator:
    """The random numbers of one sample's augmentation. `repeat` counts its earlier draws in the epoch."""
    return seeded(seed, SAMPLE, epoch, index, repeat)


def seeded(seed: int, use: int, *counter: int) -> np.random.Generator:
    """Random numbers for one use, by up to three counters."""
    # A counter-based generator: unlike streams for unlike words, by construction. Its lowest word counts the draws.
    words = [0, *counter, 0, 0, 0][:4]
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, use], counter=words))


@dataclass(frozen=True)
class Order:
    """What an epoch reads at each position: indices int [n] into the source, repeats int [n] (None: all 0)."""

    epoch: int
    indices: np.ndarray
    repeats: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, position: int) -> tuple[int, int]:
        """(index, repeat) at a position."""
        return int(self.indices[position]), 0 if self.repeats is None else int(self.repeats[position])


def epoch_order(source: Source, seed: int, epoch: int) -> Order:
    """The order of one epoch: a permutation of the source; of a weighted mixture, as many draws of each as it is due.

    Each component of a mixture goes through permutations of its own, without a seam at the end of an epoch: one that is
    drawn rarely is seen completely all the same. 4 bytes a sample (8 with weights).
    """
    if not isinstance(source, Mixture):
        return Order(epoch, _pass(source, seed, epoch, 0))
    draws = source.draws()
    small = np.uint8 if len(draws) < 256 else np.int32
    choice = np.repeat(np.arange(len(draws), dtype=small), draws)
    seeded(seed, CHOICE, epoch).shuffle(choice)
    indices: np.ndarray = np.empty(len(choice), _dtype(len(source)))
    repeats = np.zeros(len(choice), np.int32)
    for which, (part, due) in enumerate(zip(source.sources, draws, strict=True)):
        places = np.flatnonzero(choice == which)
        first, filled = divmod(epoch * due, len(part)), 0
        number, offset = first
        while filled < due:
            taken = _pass(part, seed, number, which + 1)[offset : offset + due - filled]
            here = places[filled : filled + len(taken)]
            indices[here] = taken + int(source.starts[which])
            repeats[here] = number - first[0]
            filled, number, offset = filled + len(taken), number + 1, 0
    return Order(epoch, indices, repeats)


def _pass(source: Source, seed: int, number: int, which: int) -> np.ndarray:
    """The `number`-th permutation of one source, int [len(source)]."""
    rng = seeded(seed, ORDER, number, which)
    if source.stretches is not None:
        return _stream_order(source.stretches, source.window, rng)
    order: np.ndarray = np.arange(len(source), dtype=_dtype(len(source)))
    rng.shuffle(order)
    return order


def _stream_order(stretches: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """Stretches in random order, dealt to lanes; each lane is read from front to back, shuffled inside windows;
    positions take turns between the lanes.

    The number of lanes is a power of two that depends on the data alone: 2, 4, 8, ... ranks read lanes of their own,
    and the order stays the same whatever the number of ranks. What longer lanes have left over comes last.
    """
    starts = np.concatenate([[0], np.cumsum(stretches)[:-1]])
    count = 1 << max(0, min(len(stretches) // PER_LANE, MAX_LANES).bit_length() - 1)
    dealt = rng.permutation(len(stretches))
    lanes = []
    for lane in range(count):
        rows = np.concatenate([np.arange(starts[k], starts[k] + stretches[k]) for k in dealt[lane::count]])
        step = max(1, window // count)
        for start in range(0, len(rows), step):
            rng.shuffle(rows[start : start + step])
        lanes.append(rows)
    shortest = min(map(len, lanes))
    together = np.stack([rows[:shortest] for rows in lanes], axis=1).reshape(-1)
    rest = np.concatenate([rows[shortest:] for rows in lanes])
    return np.concatenate([together, rest]).astype(_dtype(len(together) + len(rest)))


def _dtype(count: int) -> type:
    return np.int32 if count < 2**31 else np.int64


def steps_in_epoch(count: int, global_batch: int) -> int:
    """Optimiser steps of an epoch; the last incomplete global batch is dropped.

    Raises:
        ConfigError: fewer samples than one global batch.
    """
    if count < global_batch:
        raise ConfigError(f"{count} images are fewer than one global batch of {global_batch}: lower --batch-size")
    return count // global_batch


@dataclass(frozen=True)
class BatchKey:
    """Which samples one micro-step of one rank reads: positions int64 [B] in the order of `epoch`."""

    epoch: int
    positions: np.ndarray


def batch_keys(
    *, batch_size: int, rank: int, world: int, accumulate: int, start_step: int, total_steps: int, steps_per_epoch: int
) -> Iterator[BatchKey]:
    """The keys of one rank from optimiser step `start_step` to `total_steps`, `accumulate` for each step."""
    block = batch_size * world
    for step in range(start_step, total_steps):
        epoch, place = divmod(step, steps_per_epoch)
        for micro in range(accumulate):
            first = (place * accumulate + micro) * block + rank
            yield BatchKey(epoch, first + world * np.arange(batch_size))
