"""What has been trained, put together for the benchmark and the page: plain rows, as results.json holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dino_tower.compare.notes import Notes
from dino_tower.compare.pretraining import Recipe
from dino_tower.compare.settings import Comparison
from dino_tower.compare.trainings import global_batch, is_finished, plan_looks, seconds_at, seconds_by_step
from dino_tower.config import to_tree
from dino_tower.run.log import read_run

Row = dict[str, Any]


class Training(NamedTuple):
    """One run of the comparison."""

    objective: str
    seed: int
    run: Path
    steps: int


class Look(NamedTuple):
    """A tower on the way of a training, or (step 0) the network that it starts from: group is then the control."""

    group: str
    seed: int
    step: int
    tower: str


def trainings_of(asked: Comparison, notes: Notes) -> list[Training]:
    """All of them, seed by seed."""
    return [
        Training(name, seed, run_of(asked, name, seed), steps)
        for seed in range(asked.seeds)
        for name in asked.objectives
        if (steps := notes.objectives[name].steps) is not None
    ]


def run_of(asked: Comparison, objective: str, seed: int) -> Path:
    """Where a training is written."""
    return Path(asked.output) / "runs" / f"{objective}-seed{seed}"


def group_rows(
    notes: Notes, done: Sequence[Training], controls: Mapping[str, str], untrained: Mapping[str, Mapping[int, str]]
) -> list[Row]:
    """The towers to benchmark by objective, then the untrained ones; each objective names its control."""
    rows: list[Row] = []
    for name in dict.fromkeys(one.objective for one in done):
        network = notes.objectives[name].network
        towers = {one.seed: f"{one.run}@{network}" for one in done if one.objective == name}
        rows.append({"name": name, "towers": towers, "network": network, "control": controls[name]})
    used = {row["control"] for row in rows}
    starts: list[Row] = [{"name": name, "towers": towers} for name, towers in untrained.items() if name in used]
    return rows + starts


def looks_of(asked: Comparison, notes: Notes, done: Sequence[Training]) -> list[Look]:
    """The checkpoints that were kept along the way, the last one among them."""
    found = []
    for one in done:
        for step in plan_looks(one.steps, asked.looks).steps:
            tower = one.run / "checkpoints" / f"step-{step}" / notes.objectives[one.objective].network
            if tower.is_dir():  # a run that went back after bad steps may lack one
                found.append(Look(one.objective, one.seed, step, str(tower)))
    return found


def look_rows(results: Mapping[str, Any], looks: Sequence[Look], asked: Comparison, notes: Notes) -> list[Row]:
    """{group, seed, step, images, seconds, gflops, data, task, metric, column, value}: one for each look and headline;
    images, seconds and gflops of training so far."""
    by_tower = {one.tower: one for one in looks}
    spent = {(one.group, one.seed): seconds_by_step(run_of(asked, one.group, one.seed)) for one in looks if one.step}
    rows = []
    for score in results["scores"]:
        if score["tower"] not in by_tower or score["layer"] != "last" or score["score"] is None:
            continue
        if score["metric"] != results["tasks"][score["task"]]["headline"]:
            continue
        one = by_tower[score["tower"]]
        images = one.step * global_batch(run_of(asked, one.group, one.seed)) if one.step else 0
        rows.append({
            "group": one.group, "seed": one.seed, "step": one.step, "images": images,
            "seconds": seconds_at(spent[one.group, one.seed], one.step) if one.step else 0.0,
            "gflops": images * notes.objectives[one.group].gflops if one.step else 0.0,
            **{key: score[key] for key in ("data", "task", "metric", "column")}, "value": score["score"]["value"],
        })  # fmt: skip
    return rows


def training_rows(trainings: Iterable[Training], notes: Notes, failures: Mapping[tuple[str, int], str]) -> list[Row]:
    """{objective, seed, run, preset, network, steps, images, seconds, gflops, alarms, finished, failure}: what each was
    and cost; images to gflops are null for one that did not come to its end. alarms: {name: what it said first}."""
    rows = []
    for one in trainings:
        noted, finished = notes.objectives[one.objective], is_finished(one.run)
        images = one.steps * global_batch(one.run) if finished else None
        rows.append({
            "objective": one.objective, "seed": one.seed, "run": str(one.run), "preset": noted.preset,
            "network": noted.network, "steps": one.steps, "images": images,
            "seconds": seconds_by_step(one.run)[-1][1] if finished else None,
            "gflops": images * noted.gflops if images is not None else None,
            "alarms": _alarms(one.run) if finished else {},
            "finished": finished, "failure": failures.get((one.objective, one.seed), ""),
        })  # fmt: skip
    return rows


def _alarms(run: Path) -> dict[str, str]:
    """{name: message} of the first time that each rang."""
    return {row["name"]: row["message"] for row in reversed(read_run(run).alarms)}


def alarm_cautions(rows: Sequence[Row]) -> list[str]:
    """A sentence for each alarm that rang in trainings of an objective, from `training_rows`: a sick training says
    little of its objective."""
    lines = []
    for name in dict.fromkeys(row["objective"] for row in rows):
        done = [row["alarms"] for row in rows if row["objective"] == name and row["finished"]]
        for alarm in dict.fromkeys(alarm for alarms in done for alarm in alarms):
            rang = [alarms[alarm] for alarms in done if alarm in alarms]
            message = rang[0].partition(". ")[0].rstrip(".")  # what is behind it is advice
            lines.append(
                f"{name} was not well: in {len(rang)} of {len(done)} trainings alarm {alarm} rang ({message}); its "
                "scores are those of that fault, too."
            )
    return lines


def setting_rows(recipes: Sequence[Recipe]) -> list[Row]:
    """{key, values: {objective: value}} of every setting in which the objectives differ."""
    flat = {one.objective: dict(_flat(to_tree(one.config))) for one in recipes}
    named = ("preset", "objective", "recipe_epochs", "recipe_batch")
    keys = [key for key in next(iter(flat.values())) if key not in named]
    return [
        {"key": key, "values": {name: values[key] for name, values in flat.items()}}
        for key in keys
        if len({str(values[key]) for values in flat.values()}) > 1
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
