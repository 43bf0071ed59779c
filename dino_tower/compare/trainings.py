"""The trainings of a comparison: ordinary runs, one after the other, each in a process of its own.

A run that was interrupted goes on, a finished one is left alone; what a training prints is kept in DIR/logs.
"""

from __future__ import annotations

import subprocess
import sys
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from dino_tower.errors import ConfigError
from dino_tower.run.directory import RunDirectory
from dino_tower.run.log import number, read_run
from dino_tower.signals import StopSignals

CHECKPOINT_EVERY = 500  # steps at most
TRIAL_STEPS, TRIAL_ROWS = 40, 5  # of the trial that says how long a step takes, and steps between its log rows


class Looks(NamedTuple):
    """When a run is looked at on its way: steps between checkpoints, between those that are kept, and the steps."""

    checkpoint_every: int
    keep_every: int
    steps: tuple[int, ...]


def plan_looks(steps: int, looks: int) -> Looks:
    """About `looks` of them, evenly spread, the last at the end; none for 0."""
    if not looks:
        return Looks(min(steps, CHECKPOINT_EVERY), 0, ())
    between = -(-steps // looks)
    parts = -(-between // CHECKPOINT_EVERY)
    keep = between // parts * parts
    on_the_way = [step for step in range(keep, steps, keep) if steps - step >= keep / 2]
    return Looks(keep // parts, keep, (*on_the_way, steps))


def train(words: Sequence[str], run: Path, log: Path, launcher: Sequence[str], signals: StopSignals) -> int:
    """`python -m dino_tower.pretrain WORDS --output RUN`; its exit code. A stop signal is passed on, and waited for."""
    log.parent.mkdir(parents=True, exist_ok=True)
    program = [*(launcher or [sys.executable]), "-m", "dino_tower.pretrain", *words, "--output", str(run)]
    with log.open("a") as printed:
        printed.write(f"$ {' '.join(program)}\n")
        printed.flush()
        try:
            process = subprocess.Popen(program, stdout=printed, stderr=subprocess.STDOUT)
        except OSError as error:
            raise ConfigError(f"--launcher: {program[0]!r} cannot be started: {error.strerror}") from None
        told = False
        try:
            while True:
                try:
                    return process.wait(0.2)
                except subprocess.TimeoutExpired:
                    if signals.received is not None and not told:
                        process.terminate()  # it ends its step and writes a checkpoint
                        told = True
        finally:
            if process.poll() is None:  # a second Ctrl-C
                process.kill()
                process.wait()


def last_words(log: Path) -> str:
    """Why a training ended, by the last line that it printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("dino-tower: ") if lines else "it printed nothing"


def is_finished(run: Path) -> bool:
    """Whether a run has done all its steps."""
    return RunDirectory(run).finished() is not None


def global_batch(run: Path) -> int:
    """Pictures of one optimiser step."""
    return int(read_run(run).starts[-1]["global_batch"])


def seconds_by_step(run: Path) -> list[tuple[int, float]]:
    """(step, seconds of training up to it), from the rates of the log: without start, checkpoints and looks."""
    log, batch = read_run(run), global_batch(run)
    rows = [(row["step"], number(row.get("images_per_s"))) for row in log.steps]
    found, total = [(0, 0.0)], 0.0
    for (before, _), (step, rate) in pairwise([(0, None), *rows]):
        total += (step - before) * batch / rate if rate else 0.0
        found.append((step, total))
    return found


def seconds_at(curve: Sequence[tuple[int, float]], step: int) -> float:
    """Between two rows of the log in proportion."""
    place = bisect_right(curve, (step, float("inf")))
    if place == len(curve):
        return curve[-1][1]
    (first, low), (last, high) = curve[place - 1], curve[place]
    return low + (high - low) * (step - first) / (last - first)


def seconds_a_step(run: Path) -> float:
    """Of a trial run: the median over its log's rows, the first left out, which pays for the start."""
    rates = [rate for row in read_run(run).steps[1:] if (rate := number(row.get("images_per_s")))]
    if not rates:
        raise ConfigError(f"{run}: the trial run's log has no rates; delete it, and it is run again")
    return global_batch(run) / median(rates)
