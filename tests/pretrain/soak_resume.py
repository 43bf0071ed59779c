"""Runs killed ten times at random instants and resumed each time, against the same runs undisturbed: bit for bit.

About 15 minutes on two free cores: six settings of forked processes (1 minute each), one under torchrun itself whose
kills also meet the import of torch (6 minutes), and one that torchrun restarts by itself. `-k torchrun` or
`-k "not torchrun"` for a part.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

STEPS, KILLS, EVERY = 60, 10, 3
# Every pair of values of (workers, accumulation, processes, source) is in one of these.
SETTINGS = [
    (0, 1, 1, "folder"),
    (2, 2, 1, "stream"),
    (2, 1, 2, "folder"),
    (0, 2, 2, "stream"),
    (2, 1, 1, "stream"),
    (0, 2, 1, "folder"),
]
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_photos) -> dict[str, tuple[str, ...]]:
    """100 photos as a folder and as five tar shards: the flags that read them."""
    root = tmp_path_factory.mktemp("data")
    photos = sorted(write_photos(root / "photos", 100).iterdir())
    for shard in range(5):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for path in photos[20 * shard : 20 * shard + 20]:
                entry = tarfile.TarInfo(path.name)
                entry.size = path.stat().st_size
                tar.addfile(entry, io.BytesIO(path.read_bytes()))
    stream = ("--data", f"tar:{root}/*.tar", "--source.streaming", "--source.window", "16")
    return {"folder": ("--data", str(root / "photos")), "stream": stream}


def flags(workers: int, accumulate: int, processes: int, data: tuple[str, ...]) -> list[str]:
    """The same global batch of 8 for all."""
    words = f"--steps {STEPS} --checkpoint-every {EVERY} --model.drop-path 0.1 --workers {workers} "
    words += f"--compute.accumulate {accumulate} --batch-size {8 // processes // accumulate}"
    return [*words.split(), *data]


def logged(run: Path) -> list[int]:
    """The steps in the log, in the order of writing: those of every life."""
    path = run / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and '{"kind": "step"' in line]


def steps_done(run: Path) -> int:
    """The newest step that any life has reached."""
    return max([0, *logged(run)])


def starts(run: Path) -> list[int]:
    """The step at which each life began."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and '{"kind": "start"' in line]


def weights(run: Path) -> dict[str, bytes]:
    """Student, teacher, heads with the centre, optimiser state."""
    folder = run / f"checkpoints/step-{STEPS}"
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}
    assert len(found) == 4
    return found


class Forked:
    """A run as forks of a process that has torch loaded: its life begins where imports end."""

    def __init__(self, lives, words: list[str], processes: int) -> None:
        self.lives, self.words, self.processes, self.children = lives, words, processes, []

    def start(self, *more: str) -> None:
        if self.processes == 1:
            self.children = [self.lives.start({"words": [*self.words, *more]})]
        else:
            self.children = self.lives.start_ranks([*self.words, *more], self.processes)

    def alive(self) -> bool:
        return any(self.lives.poll(child) is None for child in self.children)

    def kill(self) -> None:
        self.lives.kill(*self.children)

    def finish(self) -> None:
        assert [self.lives.wait(child, 600) for child in self.children] == [0] * len(self.children)


class Launched:
    """A run under torchrun, killed with its launcher, as when a machine goes down."""

    def __init__(self, words: list[str], said: Path, *options: str) -> None:
        self.command, self.said = [*LAUNCH, *options, "-m", "dino_tower.pretrain", *words[1:]], said

    def start(self, *more: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with self.said.open("a") as out:
            self.process = subprocess.Popen([*self.command, *more], stdout=out, stderr=out, env=env)

    def ranks(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return sorted((c for c in children if "dino_tower.pretrain" in c.cmdline()), key=lambda c: c.environ()["RANK"])

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            if process.is_running():
                process.kill()
        self.process.wait()

    def finish(self) -> None:
        assert self.process.wait(1200) == 0, self.said.read_text()[-5000:]


def kill_ten_times(life: Forked | Launched, run: Path, first_step: float, step: float, seed: int) -> None:
    """Kill at random instants: a third of the lives before their first step; never let the run finish."""
    rng = np.random.default_rng(seed)
    for kill in range(KILLS):
        limit, before, begin = STEPS * (kill + 1) // (KILLS + 2), len(logged(run)), time.monotonic()
        life.start("--resume", "auto")
        if kill % 3 == 0:
            end = begin + rng.uniform(0, first_step)
        else:
            while len(logged(run)) == before:
                assert life.alive(), "it ended before it was killed"
                time.sleep(0.005)
            end = time.monotonic() + rng.uniform(0, 10 * step)
        while time.monotonic() < end and steps_done(run) < limit:
            assert life.alive(), "it ended before it was killed"
            time.sleep(0.005)
        life.kill()
        half = [path.name for path in run.glob("checkpoints/.step-*")]
        lived, done = time.monotonic() - begin, steps_done(run)
        print(f"kill {kill + 1} after {lived:.2f} s at step {done}, half: {half}", flush=True)


def compare(make: Callable[[Path], Forked | Launched], folder: Path, seed: int) -> None:
    """An undisturbed run, a killed one, and their weights."""
    whole, cut = folder / "whole", folder / "cut"
    life, begin, first = make(whole), time.monotonic(), None
    life.start()
    while life.alive():
        if first is None and steps_done(whole) > 0:
            first = time.monotonic() - begin
        time.sleep(0.02)
    life.finish()
    assert first is not None
    step = (time.monotonic() - begin - first) / STEPS
    print(f"\nundisturbed: first step after {first:.1f} s, then {step:.3f} s a step", flush=True)
    life = make(cut)
    kill_ten_times(life, cut, first, step, seed)
    life.start("--resume", "auto")
    life.finish()
    print(f"it went on from steps {starts(cut)}")
    assert weights(cut) == weights(whole)


@pytest.mark.parametrize("case", range(len(SETTINGS)), ids=lambda case: "-".join(map(str, SETTINGS[case])))
def test_ten_kills(case: int, lives, tiny, data, tmp_path: Path) -> None:
    workers, accumulate, processes, source = SETTINGS[case]
    lives.wait(lives.start({"shell": "true"}))  # torch is loaded now: what follows is timed
    words = ["pretrain", *tiny(*flags(workers, accumulate, processes, data[source])), "--output"]
    compare(lambda run: Forked(lives, [*words, str(run)], processes), tmp_path, seed=case)


def test_ten_kills_under_torchrun(tiny, data, tmp_path: Path) -> None:
    words = ["pretrain", *tiny(*flags(2, 1, 2, data["folder"])), "--output"]
    compare(lambda run: Launched([*words, str(run)], tmp_path / "said"), tmp_path, seed=99)


def test_torchrun_restarts_a_run_of_which_one_process_died(lives, tiny, data, tmp_path: Path) -> None:
    words = ["pretrain", *tiny(*flags(0, 1, 2, data["folder"])), "--output"]
    whole = Forked(lives, [*words, str(tmp_path / "whole")], 2)
    whole.start()
    whole.finish()
    life, run = Launched([*words, str(tmp_path / "run")], tmp_path / "said", "--max-restarts", "3"), tmp_path / "run"
    life.start()
    for victim, step in ((1, 10), (0, 30)):  # both ranks, in turn
        while steps_done(run) < step:
            assert life.alive()
            time.sleep(0.01)
        life.ranks()[victim].kill()
        print(f"rank {victim} killed at step {steps_done(run)}", flush=True)
    life.finish()
    print(f"it started at steps {starts(run)}")
    assert len(starts(run)) == 3 and weights(run) == weights(tmp_path / "whole")
