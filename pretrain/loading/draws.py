"""What chance decides about a sample beside its crops: masks above all.

Everything is a function of the run's seed and of the sample's place in the data, so that a run which goes on, or goes
on with another number of processes, draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator
from numpy.typing import NDArray

from dino_tower.pretrain.loading.order import DRAW, STEP, seeded


@dataclass(frozen=True)
class Place:
    """Where a sample stands."""

    seed: int
    epoch: int
    index: int
    """In the source; of a stand-in for an unreadable sample, its own."""
    repeat: int
    """How often the epoch has had it before."""
    position: int
    """In the epoch's order."""
    global_batch: int
    """Samples of one optimiser step, of all processes."""

    @property
    def slot(self) -> int:
        """Which sample of its optimiser step it is, from 0."""
        return self.position % self.global_batch

    def rng(self) -> Generator:
        """The sample's own chance, apart from that of its crops."""
        return seeded(self.seed, DRAW, self.epoch, self.index, self.repeat)

    def step_rng(self) -> Generator:
        """The same for every sample of an optimiser step, on every process."""
        return seeded(self.seed, STEP, self.epoch, self.position // self.global_batch)


Draw = Callable[[Place], dict[str, NDArray[Any]]]


def draw_all(draws: tuple[Draw, ...], place: Place) -> dict[str, NDArray[Any]]:
    """What all of them draw for a sample, by name."""
    return {name: array for draw in draws for name, array in draw(place).items()}
