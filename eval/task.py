"""What a task is to the benchmark: one function from a tower's features to what each unit adds to each score.

A task knows its protocol and nothing of caches, files, columns or other towers. It is given a `View` (features of
one tower, under one geometry and layer), a `Split` of data and a seed, and gives an `Outcome`. Everything that the
towers are to be compared by follows from the outcomes: intervals, tests, tables, pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset
from dino_tower.eval.stats import Parts

if TYPE_CHECKING:
    from dino_tower.eval.view import View

# "own": what the tower's processor does. "square": the whole picture on a square grid. "native": its own shape.
# "coarse": a small square grid, of equal tokens only, for what takes minutes a tower.
Geometry = Literal["own", "square", "native", "coarse"]


class Metric(NamedTuple):
    """A score of a task. unit: what stands behind it; "%" is shown times 100. better: "none" if it only describes."""

    title: str
    unit: str = "%"
    better: Literal["higher", "lower", "none"] = "higher"


class Split(NamedTuple):
    """What is trained on (None where the task needs nothing) and what is judged."""

    train: Dataset | None
    test: Dataset

    def trained(self) -> Dataset:
        """The training part; ConfigError where the data has none."""
        if self.train is None:
            raise ConfigError(f"{self.test.name}: no training part, which this task needs")
        return self.train


@dataclass(frozen=True)
class Outcome:
    """What came out of one task, tower and seed.

    parts: for each metric, the headline first, what each unit adds. ids: the units in their order (items, queries,
    videos), the same for every tower. chosen: hyper-parameters that were chosen, and where (numbers and words).
    pictures: {unit id: what the tower made of it}, drawn small; see `Task.truth` for what they stand beside.
    """

    parts: Mapping[str, Parts]
    ids: Sequence[str]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)


Run = Callable[["View", Split, int], Outcome]


def _as_it_is(data: Dataset) -> Dataset:
    return data


def _fits_all(view: View, data: Split) -> str | None:
    return None


@dataclass(frozen=True)
class Task:
    """One task. `metrics` names every score `run` may give, the headline first.

    features: what it asks its view for, so that several processes can share the reading of pictures before it runs.
    geometry: how pictures are shown to towers. trains: something is fitted on the training part, so that layers can
    be chosen on a slice of it and a projection to 256 features makes sense. seeds: the result depends on the seed.
    choose: a cheaper form of `run`, to choose layers by.
    text: needs the tower's text encoder; such tasks form a group of their own. fits: why a tower or data set cannot
    do it, in a few words, or None. floor: the scores of the best constant answer, without looking at pictures.
    truth: {unit id: (the picture, the truth drawn)} of the units that `Outcome.pictures` shows.
    shown: the data set whose pictures are shown to the tower, where it is not the one given (frames of videos).
    version: raise it when results change, so that results that are kept on disk are not taken for these.
    """

    name: str
    title: str
    metrics: Mapping[str, Metric]
    run: Run
    features: tuple[str, ...] = ("rows",)
    geometry: Geometry = "square"
    trains: bool = False
    seeds: bool = False
    text: bool = False
    choose: Run | None = None
    fits: Callable[[View, Split], str | None] = _fits_all
    floor: Callable[[Split], Mapping[str, Parts]] | None = None
    truth: Callable[[Split, Sequence[str]], Mapping[str, tuple[Image.Image, Image.Image]]] | None = None
    shown: Callable[[Dataset], Dataset] = _as_it_is
    version: int = 1

    @property
    def headline(self) -> str:
        """The metric that decides."""
        return next(iter(self.metrics))


def labels_of(data: Dataset) -> Tensor:
    """[N] int64 class of every item; ConfigError naming the first one without."""
    found = []
    for item in data:
        if item.label is None:
            raise ConfigError(f"{data.name}: {item.id} has no label")
        found.append(item.label)
    return torch.tensor(found, dtype=torch.int64)


def kept_ids(ids: Sequence[str], most: int = 24) -> list[str]:
    """The units whose pictures are kept: evenly spread, the same for every tower."""
    step = max(1, -(-len(ids) // most))
    return list(ids[::step])
