"""One tower's features as a task sees them: under one geometry and layer, read from the cache or made now."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.cache import Cache, key_of
from dino_tower.eval.datasets.base import Dataset
from dino_tower.eval.extraction import DATA, GRIDS, AnyTower, Feature, Processes, extract, starts_of
from dino_tower.eval.fingerprints import Prints, prints_of
from dino_tower.eval.fingerprints import fingerprint as fingerprint
from dino_tower.eval.geometry import Frame
from dino_tower.eval.raw import VERSION, RawPixels

LAST, REDUCED = "last", "pca256"
# name -> of a tower of depth d: (block, after the final norm), several are put side by side
LAYERS = {
    LAST: lambda d: [(d, True)],
    "raw": lambda d: [(d, False)],
    "last4": lambda d: [(n, True) for n in range(max(1, d - 3), d + 1)],
    "quarters": lambda d: [(n, True) for n in sorted({max(1, round(d * q / 4)) for q in (1, 2, 3, 4)})],
    REDUCED: lambda d: [(d, True)],
}
WIDTH = 256  # of REDUCED, at most
NULL = 1e-6  # of the largest variance: directions below it hold rounding errors
PCA_ROWS = 50_000
VERSION_OF_FEATURES = 1  # raise it when extraction changes what it computes


class Rows:
    """Features of the patches of N pictures, memory-mapped: nothing is in memory before it is asked for."""

    def __init__(self, folders: Sequence[Path], places: Sequence[int] = (), project: Projection | None = None) -> None:
        self.parts = [np.load(folder / DATA, mmap_mode="r") for folder in folders]
        grids = np.load(folders[0] / GRIDS)
        self.starts = starts_of(grids)[:-1]
        if places:  # some of the pictures
            grids, self.starts = grids[list(places)], self.starts[list(places)]
        self.grids = grids
        self.project = project

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def width(self) -> int:
        """D."""
        return sum(part.shape[1] for part in self.parts) if self.project is None else self.project.width

    def grid(self, place: int) -> tuple[int, int]:
        """(h, w) of one picture."""
        return int(self.grids[place, 0]), int(self.grids[place, 1])

    def __getitem__(self, place: int) -> Tensor:
        """[h, w, D] float32 of one picture."""
        here = slice(self.starts[place], self.starts[place] + self.grids[place].prod())
        found = torch.from_numpy(np.concatenate([part[here] for part in self.parts], 1)).float()
        found = found if self.project is None else self.project(found)
        return found.view(*self.grid(place), -1)

    def stack(self, places: Sequence[int]) -> Tensor:
        """[B, h, w, D] float32; ConfigError where the grids differ."""
        if len({self.grid(place) for place in places}) != 1:
            raise ConfigError("pictures of unlike grids cannot be put into one batch")
        found = torch.empty(len(places), *self.grid(places[0]), self.width)
        for i, place in enumerate(places):
            found[i] = self[place]
        return found

    def sample(self, most: int, seed: int = 0) -> Tensor:
        """[M, D]: about `most` patches, the same number from every picture, for means and bases."""
        each = max(1, most // len(self))
        rng = np.random.default_rng(seed)
        found = []
        for place in range(len(self)):
            rows = self[place].flatten(0, 1)
            found.append(rows[rng.permutation(len(rows))[:each]])
        return torch.cat(found)


class Projection:
    """Onto the leading principal components of features [M, D]: `width` of them, or as many as the rows have."""

    def __init__(self, rows: Tensor, width: int = WIDTH) -> None:
        self.mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - self.mean).T.double() @ (rows - self.mean).double())
        # N rows differ in N - 1 directions at most; a probe that standardises would blow up the others
        self.width = max(1, min(width, int((values > NULL * values[-1]).sum())))
        self.basis = vectors[:, -self.width :].flip(1).float()

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) @ self.basis


class Source:
    """A tower, its cache, and what identifies its numbers. Shared by all views of the tower."""

    def __init__(self, tower: AnyTower, cache: Cache, dtype: str = "float16", processes: Processes | None = None,
                 say: Any = lambda line: None) -> None:  # fmt: skip
        self.tower, self.cache, self.dtype = tower, cache, dtype
        self.processes = processes or Processes()
        self.say = say
        self.pictures_read = 0
        self._prints: dict[int, tuple[Dataset, Prints]] = {}

    @cached_property
    def identity(self) -> str:
        """A hash of the weights and of the processor's settings."""
        return identity_of(self.tower)

    def folders(self, data: Dataset, frame: Frame, wanted: Sequence[Feature]) -> list[Path]:
        """Where the features are, after making those that are missing, all in one pass over the pictures."""
        facts = {one: self._facts(data, frame, one) for one in wanted}
        keys = {one: key_of(fact) for one, fact in facts.items()}
        self.processes.wait()  # nobody looks before everybody has done with what came before
        missing = [one for one in wanted if self.cache.find(keys[one]) is None]
        self.processes.wait()
        if missing and self.processes.world > 1:
            self._make(data, frame, missing, keys, facts)
        elif missing:
            with self.cache.lock(self.identity[:16]):
                missing = [one for one in missing if self.cache.find(keys[one]) is None]
                if missing:
                    self._make(data, frame, missing, keys, facts)
        return [self.cache.path(keys[one]) for one in wanted]

    def _make(self, data: Dataset, frame: Frame, missing: Sequence[Feature], keys: Mapping[Feature, str],
              facts: Mapping[Feature, Mapping[str, Any]]) -> None:  # fmt: skip
        first = self.processes.rank == 0
        folders = {one: (self.cache.begin if first else self.cache.aside)(keys[one]) for one in missing}
        self.processes.wait()  # nobody writes into a folder that the first is about to drop
        self.say(f"{self.tower.name}: reading {data.name}, {data.split}: {len(data)} pictures ({frame.key()})")
        with self._counted(len(data), first) as progress:
            extract(self.tower, data.items, frame, folders, self.dtype, self.processes, progress)
        for one in missing if first else ():
            self.cache.finish(keys[one], facts[one])
        self.processes.wait()

    @contextmanager
    def _counted(self, pictures: int, shown: bool) -> Iterator[Callable[[int], None]]:
        """Counts what has been read, with a bar; without a terminal one line a minute."""
        interval = 0.5 if sys.stderr.isatty() else 60.0
        share = -(-pictures // self.processes.world)
        with tqdm(total=share, unit="pictures", disable=not shown, leave=False, mininterval=interval, delay=5) as bar:

            def progress(more: int) -> None:
                self.pictures_read += more
                bar.update(more)

            yield progress

    def fingerprint(self, data: Dataset) -> str:
        """Of the pictures of a data set, made once."""
        return self._printed(data).pictures

    def labels(self, data: Dataset) -> str:
        """Of what is known about its pictures, made once."""
        return self._printed(data).labels

    def _printed(self, data: Dataset) -> Prints:
        if id(data) not in self._prints:
            self._prints[id(data)] = (data, prints_of(data))  # held, so that its id is not given to another
        return self._prints[id(data)][1]

    def _facts(self, data: Dataset, frame: Frame, feature: Feature) -> dict[str, Any]:
        return {
            "version": VERSION_OF_FEATURES, "weights": self.identity, "data": self.fingerprint(data),
            "frame": frame.sees(self.tower.patch), "feature": feature.name,
            "dtype": self.dtype, "computed": str(self.tower.dtype),
        }  # fmt: skip


class View:
    """A tower's features under one geometry and layer.

    layer: a key of LAYERS. reduce_on: the training pictures that REDUCED takes its basis from.
    """

    def __init__(self, source: Source, frame: Frame, layer: str = LAST, reduce_on: Dataset | None = None,
                 together: Sequence[str] = ()) -> None:  # fmt: skip
        if layer not in LAYERS:
            raise unknown("layer", layer, LAYERS)
        self.source, self.frame, self.layer = source, frame, layer
        self.reduce_on = reduce_on if layer == REDUCED else None
        self.together = together  # layers to be kept, too, when pictures have to be read
        self._bases: dict[str, Projection] = {}

    @property
    def tower(self) -> AnyTower:
        """The tower itself, for what it is (patch, width, text), not for features: those are kept."""
        return self.source.tower

    def vectors(self, data: Dataset) -> Tensor:
        """[N, D] float32: class tokens, or the mean of the normed patches where the tower has none."""
        found = _vectors(self._layered("vectors", data), data.places)
        project = self._projection("vectors")
        return found if project is None else project(found)

    def means(self, data: Dataset) -> Tensor:
        """[N, D] float32: the mean of the last block's normed patches, whatever the layer."""
        return _vectors(self._folders(data, [Feature("means")]), data.places)

    def rows(self, data: Dataset) -> Rows:
        """Patches."""
        return Rows(self._layered("rows", data), data.places, self._projection("rows"))

    def keys(self, data: Dataset) -> Rows:
        """Keys of the last block, all heads side by side."""
        return Rows(self._folders(data, [Feature("keys")]), data.places)

    def attention(self, data: Dataset) -> Rows:
        """Attention of the class token (or the pooling query) to the patches in the last block; D is heads."""
        return Rows(self._folders(data, [Feature("attention")]), data.places)

    def embed(self, data: Dataset) -> Tensor:
        """[N, E] float32: pictures in the space of texts."""
        return _vectors(self._folders(data, [Feature("embed")]), data.places)

    def entering(self, data: Dataset) -> tuple[Tensor, Rows]:
        """What enters the last block, for tasks that change how it attends: class tokens [N, D], and patches."""
        below = self.tower.depth - 1
        folders = self._folders(data, [Feature("vectors", below, False), Feature("rows", below, False)])
        return _vectors(folders[:1], data.places), Rows(folders[1:], data.places)

    def _folders(self, data: Dataset, wanted: Sequence[Feature]) -> list[Path]:
        """Of the whole set where `data` is a part of one: its pictures have been read already, or will be."""
        return self.source.folders(data.whole or data, self.frame, wanted)

    def _layered(self, kind: str, data: Dataset) -> list[Path]:
        depth = self.tower.depth
        own = [Feature(kind, *one) for one in LAYERS[self.layer](depth)]
        others = {Feature(kind, *one) for layer in self.together for one in LAYERS[layer](depth)}
        if kind == "rows":  # the same forward gives the class tokens, which cost no space
            others |= {Feature("vectors", *one[1:]) for one in {*own, *others}}
        others -= set(own)
        return self._folders(data, own + sorted(others))[: len(own)]

    def _projection(self, kind: str) -> Projection | None:
        if self.reduce_on is None:
            return None
        if kind not in self._bases:
            plain, data = View(self.source, self.frame), self.reduce_on
            self._bases[kind] = Projection(
                plain.vectors(data) if kind == "vectors" else plain.rows(data).sample(PCA_ROWS)
            )
        return self._bases[kind]


def _vectors(folders: Sequence[Path], places: Sequence[int]) -> Tensor:
    found = torch.from_numpy(np.concatenate([np.load(folder / DATA) for folder in folders], 1))
    return found[list(places)] if places else found


def identity_of(tower: AnyTower) -> str:
    """A hash of every weight and of the processor's settings: two towers with one identity give the same features."""
    if isinstance(tower, RawPixels):
        return VERSION
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.weights().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    settings = tower.processor.to_dict() if hasattr(tower.processor, "to_dict") else repr(tower.processor)
    digest.update(key_of({"processor": settings, "config": str(getattr(tower.model, "config", ""))}).encode())
    return digest.hexdigest()
