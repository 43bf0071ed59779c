"""What every benchmark shares: turns in one process, a clock, and one row of the table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Row = dict[str, object]


def turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, float]]:
    """Milliseconds of each run in each round, after one round that is not counted. They take turns, so that what else
    the machine does meets all of them; every other round goes backwards, so that none always follows the same one.

    On one thread `time.process_time` leaves out what other programs took; with more threads it would count them twice.
    """
    measured = []
    for index in range(rounds + 1):
        names = list(runs)[:: 1 if index % 2 else -1]
        spent = {}
        for name in names:
            start = clock()
            runs[name]()
            spent[name] = 1000 * (clock() - start)
        measured.append(spent)
    return measured[1:]


def row(name: str, baseline: str, pairs: Sequence[tuple[float, float]], target: float | None, unit: str = "ms") -> Row:
    """One line of the table from paired (ours, baseline) figures; low and high are quartiles of the paired ratios."""
    mine, theirs = np.array(pairs, dtype=float).T
    low, ratio, high = np.percentile(theirs / mine, (25, 50, 75))
    found = {
        "name": name,
        "baseline": baseline,
        "ours_ms": round(float(np.median(mine)), 3),
        "baseline_ms": round(float(np.median(theirs)), 3),
        "ratio": round(float(ratio), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "target": target,
    }
    return found if unit == "ms" else {**found, "unit": unit}


def show(rows: Sequence[Row]) -> None:
    """Print each row as the one line of JSON that run.py reads."""
    for line in rows:
        print(json.dumps(line), flush=True)
