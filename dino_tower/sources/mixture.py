"""Several sources as one."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.sources.base import NO_LABEL, Sample, Source, class_order


class Mixture(Source):
    """Sources one after the other; ids carry their source's name, classes of the same name are one class.

    `weights` say how often each is drawn in training (see `draws`); they change neither length nor evaluation.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] = ()) -> None:
        if weights and len(weights) != len(sources):
            raise ConfigError(f"--source.weights: {len(weights)} numbers for {len(sources)} --data; give one for each")
        if any(not 0 < weight < float("inf") for weight in weights):
            raise ConfigError(f"--source.weights {tuple(weights)}: weights are numbers above 0")
        self.sources = tuple(sources)
        self.starts = np.cumsum([0] + [len(source) for source in sources])
        self.weights = tuple(weights) or tuple(float(len(source)) for source in sources)
        self.name = " + ".join(source.name for source in sources)
        times = Counter(source.name for source in sources)
        self.prefixes = [s.name if times[s.name] == 1 else f"{s.name}#{k}" for k, s in enumerate(sources)]
        names = {name for source in sources for name in source.classes or ()}
        self.classes = tuple(sorted(names, key=class_order)) or None
        place = {name: index for index, name in enumerate(self.classes or ())}
        self.tables = [np.array([place[n] for n in s.classes or ()] + [NO_LABEL], np.int64) for s in sources]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self.starts, index) - 1
        return which, index - int(self.starts[which])

    def __getitem__(self, index: int) -> Sample:
        which, local = self._find(index)
        sample = self.sources[which][local]
        label = None if sample.label is None else int(self.tables[which][sample.label])
        return replace(sample, id=f"{self.prefixes[which]}/{sample.id}", label=label)

    def sample_id(self, index: int) -> str:
        which, local = self._find(index)
        return f"{self.prefixes[which]}/{self.sources[which].sample_id(local)}"

    def labels(self) -> np.ndarray | None:
        parts = []
        for source, table in zip(self.sources, self.tables, strict=True):
            labels = source.labels()
            parts.append(np.full(len(source), NO_LABEL, np.int64) if labels is None else table[labels])
        return np.concatenate(parts) if self.classes else None

    def draws(self) -> list[int]:
        """How many samples of each source an epoch of len(self) draws: its weight's share of them."""
        shares = np.array(self.weights) / sum(self.weights) * len(self)
        counts = np.floor(shares).astype(int)
        for which in np.argsort(counts - shares, kind="stable")[: len(self) - counts.sum()]:
            counts[which] += 1
        return counts.tolist()

    def describe(self) -> str:
        total = sum(self.weights)
        return "; ".join(
            f"{source.describe()} ({weight / total:.0%} of the draws)"
            for source, weight in zip(self.sources, self.weights, strict=True)
        )
