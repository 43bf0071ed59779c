"""What a benchmark says of groups of towers, as further keys of its results.json (schema of `eval.results`):

    groups             a list of {name, control, network, towers, seeds}; towers and seeds stand in the same order
    group_scores       a list of {data, task, metric, column, layer, group, score: {value, low, high, units}, seeds}:
                       of headlines; value is the mean over seeds, seeds are their scores
    group_comparisons  a list of {data, task, metric, column, layer, group, against, kind, difference, low, high, p,
                       p_holm, units, seeds}; kind: "control" (against the untrained group) or "pair"; seeds: the
                       difference of each pair of seeds. Holm's correction is over one task's comparisons of one kind

A group that has no score on a task (n/a) has none here either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from dino_tower.eval.entries import Entry
from dino_tower.eval.groups.seeds import Judged, Noise, difference, judged, noise, over_seeds
from dino_tower.eval.results import Results, plain
from dino_tower.eval.stats import holm
from dino_tower.eval.tasks import TASKS

LAYER = "last"


class Group(NamedTuple):
    """One recipe: its towers by seed. control: the untrained group that it is to be better than, empty for such a group
    itself; network: which network of a run the towers are."""

    name: str
    towers: Mapping[int, str]
    network: str = ""
    control: str = ""


class Place(NamedTuple):
    """One line of a table."""

    data: str
    task: str
    column: str


def with_groups(results: Results, entries: Sequence[Entry], groups: Sequence[Group]) -> Results:
    """`results` with the keys above."""
    by_tower = {(one.data, one.task, one.column, one.tower): one for one in entries if one.layer == LAYER}
    places = dict.fromkeys(Place(one.data, one.task, one.column) for one in entries if one.role == "tower")
    scores: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for place in places:
        found = _judged(place, by_tower, groups)
        shared = noise([one for _, one in found.values()])
        facts = {**place._asdict(), "metric": TASKS[place.task].headline, "layer": LAYER}
        for name, (seeds, one) in found.items():
            said = {"group": name, "score": asdict(over_seeds(one, shared)), "seeds": _by_seed(seeds, one.values)}
            scores.append(plain({**facts, **said}))
        comparisons += [plain({**facts, **row}) for row in _compared(found, groups, shared)]
    described = [
        {"name": one.name, "control": one.control, "network": one.network, "towers": list(one.towers.values()),
         "seeds": list(one.towers)}
        for one in groups
    ]  # fmt: skip
    return {**results, "groups": described, "group_scores": scores, "group_comparisons": comparisons}


Found = dict[str, tuple[list[int], Judged]]


def _judged(place: Place, by_tower: Mapping[tuple[str, str, str, str], Entry], groups: Sequence[Group]) -> Found:
    """{group: (seeds, what they reached)}; seeds without a score are left out."""
    metric = TASKS[place.task].headline
    found: Found = {}
    for group in groups:
        entries = {
            seed: by_tower.get((place.data, place.task, place.column, tower)) for seed, tower in group.towers.items()
        }
        there = {seed: one for seed, one in entries.items() if one is not None and not one.reason}
        if there:
            found[group.name] = (list(there), judged([one.parts[metric] for one in there.values()]))
    return found


def _compared(found: Found, groups: Sequence[Group], shared: Noise) -> list[dict[str, Any]]:
    trained = [one for one in groups if one.control and one.name in found]
    kinds = {
        "control": [(one.name, one.control) for one in trained if one.control in found],
        "pair": list(combinations([one.name for one in trained], 2)),
    }
    rows = []
    for kind, pairs in kinds.items():
        met = []
        for name, against in pairs:
            seeds = [seed for seed in found[name][0] if seed in found[against][0]]
            if seeds:
                a, b = (_of(found[one], seeds) for one in (name, against))
                met.append((name, against, seeds, a.values - b.values, difference(a, b, shared)))
        adjusted = holm([one.p for *_, one in met])
        for (name, against, seeds, each, one), p in zip(met, adjusted, strict=True):
            said = {"group": name, "against": against, "kind": kind, **asdict(one), "p_holm": p}
            rows.append({**said, "seeds": _by_seed(seeds, each)})
    return rows


def _of(found: tuple[list[int], Judged], seeds: Sequence[int]) -> Judged:
    """Some of the seeds, in the order that is asked for."""
    places = [found[0].index(seed) for seed in seeds]
    return found[1]._replace(values=found[1].values[places], draws=found[1].draws[places])


def _by_seed(seeds: Sequence[int], values: np.ndarray) -> dict[str, float]:
    return {str(seed): float(value) for seed, value in zip(seeds, values, strict=True)}
