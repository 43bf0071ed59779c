"""The benchmark: every tower through every task that the data allows, beside its floors.

The loop is here from top to bottom: towers, then data, columns, layers, tasks. A task that cannot be done is an entry
with its reason; what has been finished is on disk and is not done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dino_tower import architectures, load_tower
from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.cache import key_of
from dino_tower.eval.cost import Cost, cost_of
from dino_tower.eval.datasets import Dataset, NoSplit, allowed_tasks, open_dataset
from dino_tower.eval.entries import Entry, write_entry
from dino_tower.eval.extraction import AnyTower, Feature
from dino_tower.eval.geometry import COARSE, OWN, TOKENS, Frame
from dino_tower.eval.raw import RawPixels
from dino_tower.eval.scoring import BEST, Bench, Contestant, Done, entry_of, together
from dino_tower.eval.settings import Settings
from dino_tower.eval.sights import write_sights
from dino_tower.eval.stats import score
from dino_tower.eval.task import Split, Task
from dino_tower.eval.tasks import SUITES, TASKS
from dino_tower.eval.view import LAST, LAYERS, REDUCED, WIDTH, Source, View, fingerprint
from dino_tower.finding import find


def tasks_of(suite: str) -> list[Task]:
    """The tasks of suites and tasks named with commas, each once. ConfigError for a name that is neither."""
    names = dict.fromkeys(name for word in suite.split(",") for name in SUITES.get(word, (word,)))
    for name in names:
        if name not in TASKS:
            raise unknown("task or suite", name, [*SUITES, *TASKS], "--suite")
    return [TASKS[name] for name in names]


def open_data(settings: Settings) -> list[Split]:
    """Every data set, its splits looked at: the first pictures are read before anything is computed.

    Raises ConfigError for data that cannot be read. Only a training part that is not there is left out.
    """
    found = []
    for spelling in settings.data:
        test = open_dataset(spelling, "test")
        try:
            train: Dataset | None = open_dataset(spelling, "train")
        except NoSplit:  # many sets have no training part, and many tasks need none
            train = None
        split = Split(None if train is None else _limited(train, settings.limit), _limited(test, settings.limit))
        for part in split:
            if part is not None:
                part.check()
        found.append(split)
    return found


def contestants(settings: Settings) -> list[Contestant]:
    """The towers, each followed by its untrained twin, and raw pixels."""
    found = []
    for name in settings.towers:
        found.append(Contestant(name, "tower", ""))
        if "random" in settings.floors and not name.startswith("random:"):  # which is untrained itself
            found.append(Contestant(f"random:{name}", "random", name))
    return found + ([Contestant(RawPixels.name, "raw", "")] if "raw" in settings.floors else [])


def check_towers(settings: Settings) -> None:
    """Raises ConfigError for a name that no tower stands behind, before the others are benchmarked for hours.

    Local towers are looked up. Of a Hub id, timm and torchvision the untrained twin is made: it needs no weights.
    """
    for name in settings.towers:
        what = name.removeprefix("random:")
        if (what != name and what in architectures.names()) or _lies_here(what, name):
            continue
        try:
            load_tower(f"random:{what}")
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"random:{what}", name)) from None


def _lies_here(what: str, name: str) -> bool:
    """Whether there is a file or a directory with a config. Raises ConfigError for what is no TOWER at all."""
    if Path(what).is_file() or (Path(what) / "base.json").is_file():
        return True
    foreign = what.partition(":")[0] in ("timm", "torchvision")
    return not foreign and (Path(find(what, name)) / "config.json").is_file()


class Seen(NamedTuple):
    """A tower, what it is and what it costs in each column."""

    name: str
    facts: dict[str, Any]
    costs: dict[str, Cost]


def facts_of(split: Split, settings: Settings) -> dict[str, Any]:
    """A data set in the results."""
    test = split.test
    names = {"name": test.name, "kind": test.kind, "split": test.split, "chosen_by": test.chosen_by}
    counts = {"items": len(test), "train_items": len(split.train) if split.train is not None else 0}
    untaught = _untaught(split, settings.limit)
    allowed = [task.name for task in tasks_of(settings.suite) if task.name in allowed_tasks(test)]
    kinds = {"classes": list(test.classes), "regions": list(test.regions), "untaught": untaught}
    return {**names, **counts, **kinds, "tasks": allowed}


def run_suite(bench: Bench, splits: Sequence[Split]) -> Iterator[Entry | Seen]:
    """Every entry as it is finished, and each tower with its costs."""
    settings = bench.settings
    tasks = tasks_of(settings.suite)
    plan = [(split, [task for task in tasks if task.name in allowed_tasks(split.test)]) for split in splits]
    for split, allowed in plan:
        bench.say(split.test.describe())
        bench.say(f"  tasks: {', '.join(task.name for task in allowed) or 'none of those asked for'}")
        if untaught := _untaught(split, settings.limit):
            bench.say(f"  {len(untaught)} of its classes have test pictures and, with --limit, no training picture")
    if not any(allowed for _, allowed in plan):
        asked = ", ".join(task.name for task in tasks)
        raise ConfigError(f"eval: the data allows none of the tasks asked for ({asked})")
    for split, allowed in plan if "constant" in settings.floors else ():
        yield from (_constant(bench, task, split) for task in allowed if task.floor is not None)
    if bench.processes.world > 1:
        _share_reading(bench, plan)
        if bench.processes.rank > 0:
            return
    for who in contestants(settings):
        tower = who.load(settings)
        source, done, seen = Source(tower, bench.cache, settings.dtype, say=bench.say), Done(), set[str]()
        yield Seen(who.name, {"family": tower.family, "patch": tower.patch, "width": tower.width}, {})
        for split, allowed in plan:
            for task in allowed:
                for frame in frames(settings, task):
                    if settings.costs and frame.key() not in seen:
                        seen.add(frame.key())
                        yield Seen(who.name, {}, _costs(tower, frame))
                    for layer in layers(settings, task, who.role, tower):
                        yield entry_of(bench, who, source, task, split, frame, layer, done)
            _look(bench, who, source, split, allowed)


def frames(settings: Settings, task: Task) -> list[Frame]:
    """The sizes at which a task shows pictures."""
    if task.geometry == "own":
        return [Frame("own", OWN)]
    if task.geometry == "coarse":
        return [Frame("square", TOKENS, min(settings.tokens, COARSE))]
    return [Frame(task.geometry, column, settings.tokens, settings.pixels) for column in settings.columns]


def layers(settings: Settings, task: Task, role: str, tower: AnyTower) -> list[str]:
    """What is reported: always the last; where something is trained, the best on a slice of train, and a projection
    to 256 features, since width alone helps a probe."""
    found = [LAST]
    if not task.trains or role == "raw":
        return found
    if settings.layers == "choose" and tower.depth > 1:
        found.append(BEST)
    if settings.reduced and tower.width > WIDTH:
        found.append(REDUCED)
    return found


def _share_reading(bench: Bench, plan: Sequence[tuple[Split, Sequence[Task]]]) -> None:
    """All processes read the pictures of everything to come; the first then goes on from the cache, alone.

    Reading comes first for all towers: a process that waits for another's probes would run into a time limit.
    """
    settings = bench.settings
    for who in contestants(settings):
        tower = who.load(settings)
        source = Source(tower, bench.cache, settings.dtype, bench.processes, bench.say)
        for (split, tasks), part in ((one, part) for one in plan for part in one[0]):
            for task, frame in ((one, frame) for one in tasks for frame in frames(settings, one)):
                if part is None or (part is split.train and not task.trains):
                    continue
                layers = [LAYERS[layer](tower.depth) for layer in together(settings, task, who.role)]
                tokens = {block for layer in layers for block in layer}
                wanted = {
                    Feature(kind, *block)
                    for kind in task.features
                    for block in (tokens if kind in ("vectors", "rows") else [()])
                }
                # what cannot be read here the first process meets again, and says so in the table
                with suppress(ConfigError):
                    source.folders(task.shown(part), frame, sorted(wanted))


def _constant(bench: Bench, task: Task, split: Split) -> Entry:
    """The floor of the best constant answer."""
    assert task.floor is not None
    key = key_of({"constant": [task.name, task.version], "data": [split.test.name, fingerprint(split.test)],
                  "train": split.train and fingerprint(split.train)})[:24]  # fmt: skip
    entry = Entry(key, split.test.name, task.name, "constant answer", "constant", "", "", "")
    try:
        parts = task.floor(split)
        entry = replace(entry, parts=parts, seeds={name: [score(one)] for name, one in parts.items()})
    except ConfigError as error:
        entry = replace(entry, reason=str(error))
    write_entry(bench.output, entry)
    return entry


def _look(bench: Bench, who: Contestant, source: Source, split: Split, tasks: Sequence[Task]) -> None:
    """A few pictures for the explorer of the report, where patches were asked for anyhow."""
    asked = [task for task in tasks if task.geometry == "square" and "rows" in task.features]
    if who.role == "raw" or not asked or TOKENS not in bench.settings.columns:
        return
    task = asked[0]
    view = View(source, frames(bench.settings, task)[0], together=together(bench.settings, task, who.role))
    try:
        write_sights(bench.output, view, split.test, who.name)
    except ConfigError as error:  # the tower does not take the size: its tasks have said so
        bench.say(f"  {who.name}: no pictures for the explorer: {error}")


def _costs(tower: AnyTower, frame: Frame) -> dict[str, Cost]:
    try:
        return {frame.key(): cost_of(tower, frame)}
    except ConfigError:  # a size that the tower does not take: its tasks say so
        return {}


def _untaught(split: Split, limit: int | None) -> list[str]:
    """Classes of test pictures that no training picture has, where a limit took some away (looking at all pictures of a
    whole set would cost a reading of it)."""
    if limit is None or split.train is None or "labels" not in split.test.has:
        return []
    taught = {item.label for item in split.train}
    return [
        split.test.classes[label]
        for label in sorted({item.label for item in split.test if item.label is not None} - taught)
    ]


def _limited(data: Dataset, limit: int | None) -> Dataset:
    """At most `limit` pictures, evenly spread. Sets that are searched stay whole: queries name places in them."""
    if limit is None or len(data) <= limit or data.has & {"queries", "copies"}:
        return data
    places = torch.linspace(0, len(data) - 1, limit).round().long().unique().tolist()
    return replace(data, items=[data[place] for place in places], chosen_by=f"{data.chosen_by}, {limit} of {len(data)}")
