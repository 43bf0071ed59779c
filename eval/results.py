"""From entries to results: intervals, comparisons with Holm's correction, and the files that others read.

results.json (schema "dino-tower/eval", version 1) holds:

    dino_tower   the version that measured
    reference    the tower that others are compared with
    settings     what was asked for; device: what towers ran on (null in results of earlier versions)
    data         a list of {name, kind, split, items, train_items, classes, regions, chosen_by, tasks,
                 untaught}: items and train_items, how many are judged and trained on; untaught, the classes of test
                 pictures that no training picture has under --limit
    towers       a list of {name, role, of, family, patch, width, costs: {column: {...}}}; role and of as in `Entry`
    tasks        {name: {title, text, headline, metrics: {name: {title, unit, better}}}}
    scores       a list of {data, task, metric, tower, role, of, column, layer, score: {value, low, high, units},
                 seeds, chosen, seconds, reason, entry}; score is null where reason says why
    comparisons  a list of {data, task, metric, column, layer, tower, against, kind, difference, low, high, p, p_holm,
                 units}: of headlines only; kind: "reference", "random", "raw" or "constant"

Numbers that cannot be had (an interval below 20 units) are null. results.csv is `scores`, one row each.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dino_tower import __version__
from dino_tower.checkpoint import read_json, replace_text
from dino_tower.errors import ConfigError
from dino_tower.eval.cost import Cost
from dino_tower.eval.entries import Entry
from dino_tower.eval.stats import Comparison, compare, holm, interval
from dino_tower.eval.tasks import TASKS

SCHEMA, VERSION = "dino-tower/eval", 1
RESULTS, TABLE = "results.json", "results.csv"
Results = dict[str, Any]
COLUMNS = ("data", "task", "metric", "tower", "role", "of", "column", "layer")


def assemble(
    entries: Sequence[Entry],
    costs: Mapping[str, Mapping[str, Cost]],
    settings: Mapping[str, Any],
    data: Sequence[Mapping[str, Any]],
    towers: Mapping[str, Mapping[str, Any]],
    reference: str,
) -> Results:
    """Everything as one dictionary. costs: {tower: {column: cost}}; towers: {name: facts}; reference: a tower."""
    names = dict.fromkeys(entry.tower for entry in entries if entry.role != "constant")
    tasks = dict.fromkeys(entry.task for entry in entries)
    roles = {entry.tower: (entry.role, entry.of) for entry in entries}
    return {
        "schema": SCHEMA, "version": VERSION, "dino_tower": __version__, "reference": reference,
        "settings": dict(settings), "data": [dict(one) for one in data],
        "towers": [
            {"name": name, "role": roles[name][0], "of": roles[name][1], **towers.get(name, {}),
             "costs": {column: asdict(cost) for column, cost in costs.get(name, {}).items()}}
            for name in names
        ],
        "tasks": {name: _task(name) for name in tasks},
        "scores": [row for entry in entries for row in _scores(entry)],
        "comparisons": _comparisons(entries, reference),
    }  # fmt: skip


def _task(name: str) -> dict[str, Any]:
    task = TASKS[name]
    metrics = {one: metric._asdict() for one, metric in task.metrics.items()}
    return {"title": task.title, "text": task.text, "headline": task.headline, "metrics": metrics}


def _scores(entry: Entry) -> Iterable[dict[str, Any]]:
    facts = {name: getattr(entry, name) for name in COLUMNS if name != "metric"}
    rest = {"chosen": list(entry.chosen), "seconds": round(entry.seconds, 2), "entry": entry.key}
    if entry.reason:
        yield {
            **facts,
            "metric": TASKS[entry.task].headline,
            "score": None,
            "seeds": [],
            **rest,
            "reason": entry.reason,
        }
        return
    for metric, parts in entry.parts.items():
        found = interval(parts)
        score = {"value": found.value, "low": found.low, "high": found.high, "units": found.units}
        seeds = list(entry.seeds[metric])
        yield {**facts, "metric": metric, "score": plain(score), "seeds": plain(seeds), **rest, "reason": ""}


def _comparisons(entries: Sequence[Entry], reference: str) -> list[dict[str, Any]]:
    """Of every headline: towers with the reference, with their untrained twins, raw pixels and the constant answer.

    Holm's correction is over the towers of one table row and kind: the reader picks the best of a row.
    """
    groups: dict[tuple[str, ...], list[Entry]] = {}
    floors: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        if entry.reason:
            continue
        if entry.role == "tower":
            groups.setdefault((entry.data, entry.task, entry.column, entry.layer), []).append(entry)
        elif entry.role == "constant":
            floors[entry.data, entry.task, "constant"] = entry
        else:
            floors[entry.data, entry.task, entry.column, entry.layer, entry.of or entry.role] = entry
    found = []
    for (data, task, column, layer), towers in groups.items():
        by_name = {entry.tower: entry for entry in towers}
        rivals: dict[str, list[tuple[Entry, Entry | None]]] = {
            "reference": [(one, by_name.get(reference)) for one in towers if one.tower != reference],
            "random": [(one, floors.get((data, task, column, layer, one.tower))) for one in towers],
            "raw": [(one, floors.get((data, task, column, "last", "raw"))) for one in towers],
            "constant": [(one, floors.get((data, task, "constant"))) for one in towers],
        }
        for kind, pairs in rivals.items():
            met = [(one, other, _compared(one, other)) for one, other in pairs if other is not None]
            adjusted = holm([one.p for _, _, one in met])
            for (one, other, result), p in zip(met, adjusted, strict=True):
                facts = {"data": data, "task": task, "metric": TASKS[task].headline, "column": column, "layer": layer}
                names = {"tower": one.tower, "against": other.tower, "kind": kind}
                found.append({**facts, **names, **plain({**asdict(result), "p_holm": p})})
    return found


def _compared(one: Entry, other: Entry) -> Comparison:
    """Seeds are side by side in the parts; a floor without seeds stands beside each of them."""
    metric = TASKS[one.task].headline
    return compare(one.parts[metric], other.parts[metric])


def plain(value: Any) -> Any:
    """NaN as null: JSON has none."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(output: Path, results: Results) -> None:
    """results.json and results.csv."""
    replace_text(output / RESULTS, json.dumps(results, indent=1, default=str) + "\n")
    replace_text(output / TABLE, as_csv(results))


def as_csv(results: Results) -> str:
    """One row a score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "value", "low", "high", "units", "seeds", "reason"])
    for row in results["scores"]:
        score = row["score"] or {"value": None, "low": None, "high": None, "units": None}
        seeds = " ".join(f"{one:.6g}" for one in row["seeds"] if one is not None)
        writer.writerow([*(row[name] for name in COLUMNS), *score.values(), seeds, row["reason"]])
    return text.getvalue()


def read_results(output: str | Path) -> Results:
    """Raises ConfigError for a directory without results, and for those of another schema."""
    file = Path(output) / RESULTS
    if not file.is_file():
        raise ConfigError(f"{output}: no {RESULTS}; give a directory that `dino-tower eval` wrote")
    found = read_json(file)
    if found.get("schema") != SCHEMA or found.get("version") != VERSION:
        raise ConfigError(
            f"{file}: schema {found.get('schema')!r}, version {found.get('version')!r}; "
            f"this release reads {SCHEMA!r}, version {VERSION}"
        )
    return found
