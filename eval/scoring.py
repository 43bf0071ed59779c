"""One entry of the benchmark: a task on one tower, data set, column and layer, from disk or computed now.

The layer "best" is chosen on a slice of train; where two columns show a tower the same pixels, or the last layer is the
best, the task runs once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dino_tower import load_tower
from dino_tower.errors import ConfigError
from dino_tower.eval.cache import Cache, key_of
from dino_tower.eval.datasets import Dataset
from dino_tower.eval.entries import Entry, joined_seeds, read_entry, write_entry, write_pictures
from dino_tower.eval.extraction import AnyTower, Processes
from dino_tower.eval.geometry import Frame
from dino_tower.eval.raw import RawPixels
from dino_tower.eval.settings import Settings
from dino_tower.eval.splits import held_out
from dino_tower.eval.stats import score
from dino_tower.eval.task import Split, Task
from dino_tower.eval.truths import write_truths
from dino_tower.eval.view import LAST, LAYERS, REDUCED, VERSION_OF_FEATURES, Source, View

BEST = "best"  # the layer that did best on a slice of train
CHOICES = tuple(layer for layer in LAYERS if layer != REDUCED)
CHOOSE_ON = 0.1  # share of train

Say = Callable[[str], object]
Done = dict[tuple[str, str, str, str], Entry]  # by task, data, what the tower is shown, layer


class Contestant(NamedTuple):
    """A tower, or a floor below one. role, of: as in `Entry`."""

    name: str
    role: str
    of: str

    def load(self, settings: Settings) -> AnyTower:
        """The tower itself, on the device of the settings."""
        if self.role == "raw":
            return RawPixels()
        return load_tower(self.name, device=settings.device, dtype=settings.computed)


class Bench(NamedTuple):
    """Everything that one entry needs to know of its surroundings."""

    settings: Settings
    output: Path
    cache: Cache
    processes: Processes
    say: Say


def entry_of(
    bench: Bench, who: Contestant, source: Source, task: Task, split: Split, frame: Frame, layer: str, done: Done
) -> Entry:
    """From disk, or computed and written there."""
    settings, repeats = bench.settings, bench.settings.seeds if task.seeds else 1
    facts = {
        "task": [task.name, task.version], "weights": source.identity, "frame": frame.key(), "layer": layer,
        "test": source.fingerprint(split.test), "train": split.train and source.fingerprint(split.train),
        "labels": [source.labels(split.test), split.train and source.labels(split.train)],
        "seeds": repeats, "seed": settings.seed, "dtype": [settings.dtype, settings.computed], "tower": who.name,
        "data": split.test.name, "features": VERSION_OF_FEATURES,
    }  # fmt: skip
    key = key_of(facts)[:24]
    names = Entry(key, split.test.name, task.name, who.name, who.role, who.of, frame.key(), layer)
    entry = _kept(bench.output, key) or _same(names, task, split, frame, source, done)
    start = time.perf_counter()
    try:
        if entry is None:
            entry = _computed(bench, who, names, source, task, split, frame, done, repeats)
            entry = replace(entry, seconds=time.perf_counter() - start)
        if not entry.reason:  # for what was kept, too: another --limit has drawn other units meanwhile
            write_truths(bench.output, task, split, list(entry.ids), source.labels(split.test))
    except ConfigError as error:
        entry = replace(names, reason=str(error), seconds=time.perf_counter() - start)
    done[task.name, split.test.name, frame.sees(source.tower.patch), layer] = entry
    bench.say(f"  {_line(entry, task)}")
    write_entry(bench.output, entry)
    return entry


def _kept(output: Path, key: str) -> Entry | None:
    """Scores that are on disk. What could not be done is tried again: the reason may be gone."""
    entry = read_entry(output, key)
    return entry if entry is not None and not entry.reason else None


def _computed(
    bench: Bench, who: Contestant, names: Entry, source: Source, task: Task, split: Split, frame: Frame, done: Done,
    repeats: int,
) -> Entry:  # fmt: skip
    """The entry of these names, which say the layer. Raises ConfigError for what cannot be done."""
    settings, layer = bench.settings, names.layer
    view = View(source, frame, LAST, together=together(settings, task, who.role))
    if reason := task.fits(view, split):
        raise ConfigError(reason)
    taken = choose_layer(task, view, split, settings.seed) if layer == BEST else layer
    entry = _same(replace(names, layer=taken), task, split, frame, source, done)
    if entry is None:
        view = View(source, frame, taken, split.train, together(settings, task, who.role))
        outcomes = [task.run(view, split, settings.seed + seed) for seed in range(repeats)]
        parts, seeds = joined_seeds(outcomes)
        pictures = write_pictures(bench.output, names.key, outcomes[0].pictures)
        chosen = [dict(one.chosen) for one in outcomes]
        entry = replace(names, parts=parts, seeds=seeds, ids=outcomes[0].ids, pictures=pictures, chosen=chosen)
    return replace(names, **_results(entry, taken if layer == BEST else None))


def _same(names: Entry, task: Task, split: Split, frame: Frame, source: Source, done: Done) -> Entry | None:
    """What another column or layer gave, where this tower sees the same there."""
    kept = done.get((task.name, split.test.name, frame.sees(source.tower.patch), names.layer))
    return replace(kept, key=names.key, column=names.column) if kept is not None else None


def _results(entry: Entry, chosen_layer: str | None) -> dict[str, Any]:
    """The fields of an entry that are results, with the layer where it was chosen."""
    found = {name: getattr(entry, name) for name in ("parts", "seeds", "ids", "pictures", "reason")}
    layer = {"layer": chosen_layer} if chosen_layer else {}
    return {**found, "chosen": [{**layer, **one} for one in entry.chosen]}


def _line(entry: Entry, task: Task) -> str:
    what = ", ".join(word for word in (entry.task, entry.column, entry.layer, entry.tower) if word)
    if entry.reason:
        return f"{what}: n/a: {entry.reason}"
    return f"{what}: {score(entry.parts[task.headline]):.4f} ({entry.seconds:.0f} s)"


def choose_layer(task: Task, view: View, split: Split, seed: int) -> str:
    """The layer with the best headline when the task is trained on nine tenths of train and judged on the rest."""
    fit, validation = slices(split.trained(), seed)
    found = {}
    for layer in CHOICES:
        other = View(view.source, view.frame, layer, together=CHOICES)
        outcome = (task.choose or task.run)(other, Split(fit, validation), seed)
        found[layer] = score(outcome.parts[task.headline])
    sign = 1 if task.metrics[task.headline].better == "higher" else -1
    return max(found, key=lambda one: (found[one] == found[one], sign * found[one]))  # NaN is never the best


def slices(train: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Train without, and the tenth itself: by class where there are labels."""
    labels = [item.label or 0 for item in train] if "labels" in train.has else [0] * len(train)
    fit, validation = held_out(torch.tensor(labels), CHOOSE_ON, seed)
    return train.part(fit.tolist(), "fit"), train.part(validation.tolist(), "validation")


def together(settings: Settings, task: Task, role: str) -> Sequence[str]:
    """Layers that are going to be asked for, so that each picture is read once for all of them."""
    return CHOICES if task.trains and settings.layers == "choose" and role != "raw" else (LAST,)
