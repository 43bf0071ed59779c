"""A run directory as it was left behind: finished, interrupted, resumed, or cut off in the middle of a line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_tower.config import read_yaml
from dino_tower.errors import ConfigError

Row = dict[str, Any]


@dataclass(frozen=True)
class RunLog:
    """What is known of a run; every part may be empty."""

    settings: Row  # config.yaml, or the `resolved` of the first start
    starts: list[Row] = field(default_factory=list)  # one more for every resume, in the order they happened
    steps: list[Row] = field(default_factory=list)  # by step, each step once
    monitor: list[Row] = field(default_factory=list)
    alarms: list[Row] = field(default_factory=list)
    checkpoints: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)  # rows of skipped.jsonl
    rollbacks: list[Row] = field(default_factory=list)  # times the run went back by itself
    bad_steps: int = 0  # steps without a finite loss
    ended: bool = False
    seconds: float = 0.0  # time spent running: the gaps between an interruption and the next start left out
    broken_lines: int = 0

    @property
    def last_step(self) -> int:
        """The furthest step with a row, 0 before the first."""
        return max((row["step"] for row in [*self.steps, *self.monitor]), default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps the run is to have, if it said so."""
        told = [start.get("steps") for start in self.starts if isinstance(start.get("steps"), int)]
        return told[-1] if told else setting(self.settings, "steps", int)


def read_run(run_dir: str | Path) -> RunLog:
    """Read config.yaml, log.jsonl and skipped.jsonl of a run directory; unreadable lines are counted and left out.

    Where a step was repeated after a resume, the later row wins; a start or a rollback at step
    s > 0 undoes what lay beyond s.
    Raises ConfigError if the directory holds neither config.yaml nor log.jsonl.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ConfigError(f"no run directory {str(folder)!r}")
    config, log = folder / "config.yaml", folder / "log.jsonl"
    if not config.is_file() and not log.is_file():
        raise ConfigError(f"{folder}: not a run: it has neither config.yaml nor log.jsonl; give what --output was")
    rows, broken = _lines(log)
    kinds = ("step", "monitor", "alarm", "checkpoint")
    kept: dict[str, dict[Any, Row]] = {kind: {} for kind in kinds}
    starts: list[Row] = []
    rollbacks: list[Row] = []
    bad_steps = 0
    ended = False
    for row in rows:
        kind, step = row.get("kind"), row.get("step", 0)
        if not isinstance(step, int):
            broken += 1
        elif kind in ("start", "rollback"):
            (starts if kind == "start" else rollbacks).append(row)
            ended = False
            if step > 0:
                kept = {
                    name: {key: old for key, old in found.items() if old["step"] <= step}
                    for name, found in kept.items()
                }
        elif kind in kept:
            kept[kind][(step, row.get("name"))] = {**row, "step": step}
        elif kind == "bad_step":
            bad_steps += 1
        elif kind == "end":
            ended = True
    ordered = {kind: sorted(kept[kind].values(), key=lambda row: row["step"]) for kind in kinds}
    settings = _settings(config, starts)
    skipped, _ = _lines(folder / "skipped.jsonl")
    return RunLog(
        settings, starts, ordered["step"], ordered["monitor"], ordered["alarm"], ordered["checkpoint"],
        skipped, rollbacks, bad_steps, ended, _seconds(rows), broken,
    )  # fmt: skip


def run_pictures(run_dir: str | Path) -> tuple[dict[int, Path], dict[int, dict[str, dict[int, Path]]]]:
    """Files under pictures/: ({image: input picture}, {step: {name: {image: picture}}}), steps ascending."""
    folder = Path(run_dir) / "pictures"
    inputs: dict[int, Path] = {}
    by_step: dict[int, dict[str, dict[int, Path]]] = {}
    for path in sorted(folder.glob("*.png")) + sorted(folder.glob("step-*/*.png")):
        name = re.fullmatch(r"(\w+)-(\d+)", path.stem)
        step = re.fullmatch(r"step-(\d+)", path.parent.name)
        if name and step:
            by_step.setdefault(int(step[1]), {}).setdefault(name[1], {})[int(name[2])] = path
        elif name and name[1] == "input":
            inputs[int(name[2])] = path
    return inputs, dict(sorted(by_step.items()))


def setting(settings: Row, key: str, kind: type | tuple[type, ...] = object) -> Any:
    """The value of a key at the top or in any section (dotted keys work too), None if absent or of another kind."""
    here: Any = settings
    for part in key.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    if here is None and "." not in key:
        here = next((v[key] for v in settings.values() if isinstance(v, dict) and v.get(key) is not None), None)
    return here if isinstance(here, kind) and not isinstance(here, bool) else None


def number(value: Any) -> float | None:
    """A finite number, or None: log rows may hold null, NaN, or a text where a number was meant."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def points(rows: Iterable[Row], get: str | Callable[[Row], Any]) -> list[tuple[int, float]]:
    """(step, value) of every row that has a finite value under a key (or by a function)."""
    found = ((row["step"], number(row.get(get) if isinstance(get, str) else get(row))) for row in rows)
    return [(step, value) for step, value in found if value is not None]


def _lines(path: Path) -> tuple[list[Row], int]:
    if not path.is_file():
        return [], 0
    rows, broken = [], 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            elif line.strip():
                broken += 1
    return rows, broken


def _settings(config: Path, starts: list[Row]) -> Row:
    if config.is_file():
        try:
            return read_yaml(config)
        except ConfigError:
            pass  # half-written by a run that died: the log holds the same settings
    return next((start["resolved"] for start in starts if isinstance(start.get("resolved"), dict)), {})


def _seconds(rows: list[Row]) -> float:
    total, previous = 0.0, None
    for row in rows:
        now = number(row.get("time"))
        if now is None:
            continue
        if previous is not None and row.get("kind") != "start":
            total += max(0.0, now - previous)
        previous = now
    return total
