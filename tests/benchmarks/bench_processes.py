"""Real runs of the preset dino_cpu on generated photos: two processes against one on the same cores, and waiting.

One process has two threads and a batch of 64, two processes have one thread and 32 each. What they train on is written
here, 500 x 375 JPEGs; what they reach is read from their own log.jsonl, the first rows, in which the loader's workers
were still starting, left out. The share of time waiting for data is that of the runs with one process.

    python tests/benchmarks/bench_processes.py            # the rows, printed
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench_crops import photo
from paired import Row, row, show

ROUNDS = 3
PHOTOS, STEPS, LOG_EVERY, FIRST = 192, 30, 5, 10  # steps up to FIRST are not counted
BATCH = 64
WAIT_LIMIT = 3.0  # per cent
FLAGS = [
    "--preset", "dino_cpu", "--steps", str(STEPS), "--monitor.log-every", str(LOG_EVERY), "--monitor.minutes", "0",
    "--monitor.tracker", "none",
]  # fmt: skip
ONE = [sys.executable, "-m", "dino_tower.pretrain"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *ONE[1:]]


def train(launch: Sequence[str], photos: Path, output: Path, batch: int, threads: int) -> tuple[float, float]:
    """(milliseconds a step, per cent of the time spent waiting for data) of one run."""
    command = [*launch, *FLAGS, "--data", str(photos), "--output", str(output), "--batch-size", str(batch)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    log = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    counted = [entry for entry in log if entry["kind"] == "step" and entry["step"] > FIRST]
    return (
        statistics.median(1000 * BATCH / entry["images_per_s"] for entry in counted),
        100 * statistics.mean(entry["data_wait"] for entry in counted),
    )


def rows() -> list[Row]:
    """One row for the two processes, one for waiting."""
    pairs, waits = [], []
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for i in range(PHOTOS):
            photo(photos / f"{i:04d}.jpg", seed=i)
        for i in range(ROUNDS):
            one, wait = train(ONE, photos, Path(folder) / f"one-{i}", BATCH, threads=2)
            two, _ = train(TWO, photos, Path(folder) / f"two-{i}", BATCH // 2, threads=1)
            pairs.append((two, one))
            waits.append((max(wait, 0.01), WAIT_LIMIT))
    return [
        row("a step of dino_cpu, two processes on two cores", "one process, two threads", pairs, 0.9),
        row("share of time waiting for data, dino_cpu", "the limit", waits, 1.0, unit="%"),
    ]


if __name__ == "__main__":
    show(rows())
