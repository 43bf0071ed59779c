"""A run can be ended at any instant and goes on to the same weights; what cannot go on says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dino_tower.checkpoint import checkpoints
from dino_tower.errors import ConfigError

Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start(tiny) -> Iterator[Start]:
    """Start the main job in a process of its own; whatever is left of it is killed at the end."""
    started: list[subprocess.Popen] = []

    def run(output: Path, *flags: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dino_tower.pretrain", *tiny(*flags), "--output", str(output)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0][-2000:]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def files(run: Path, step: int) -> dict[str, bytes]:
    """The bytes of every weight file of a checkpoint."""
    folder = run / f"checkpoints/step-{step}"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def test_killed_twice_and_resumed_it_ends_with_the_same_weights(start: Start, tmp_path: Path) -> None:
    flags = ("--steps", "40", "--checkpoint-every", "4", "--model.drop-path", "0.1", "--workers", "1")
    whole = start(tmp_path / "whole", *flags)
    assert whole.wait(timeout=200) == 0
    cut = tmp_path / "cut"
    for passed in (5, 17):  # seen to be past this step, then killed wherever it happens to be
        process = start(cut, *flags, "--resume", "auto")
        wait_for(lambda p=passed: f'"kind": "step", "step": {p},' in read(cut / "log.jsonl"), process)
        process.kill()
        process.wait(timeout=30)
    assert start(cut, *flags, "--resume").wait(timeout=200) == 0
    assert files(tmp_path / "whole", 40) == files(cut, 40)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_and_writes(start: Start, tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    process = start(run, "--steps", "100000", "--workers", "1")
    wait_for(lambda: '"step": 3,' in read(run / "log.jsonl"), process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 3
    step = int((run / "latest").read_text().removeprefix("step-"))
    assert f"stopped by {signal.Signals(number).name} after step {step}" in said and "--resume" in said
    assert (run / f"checkpoints/step-{step}/state.json").is_file()


def test_two_runs_on_one_directory(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(run, "--steps", "100000")
    wait_for(lambda: '"step": 1,' in read(run / "log.jsonl"), first)
    second = start(run, "--steps", "100000", "--resume")
    said = second.communicate(timeout=120)[0]
    assert second.returncode == 2 and "another process is training this run" in said
    assert first.poll() is None


def test_resuming_what_is_finished_changes_nothing(pretrain) -> None:
    run = pretrain("run", "--steps", "2")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    pretrain("run", "--steps", "2", "--resume")
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_run_without_a_checkpoint_starts_again(pretrain) -> None:
    run = pretrain("run", "--steps", "2")
    for path in checkpoints(run / "checkpoints"):
        path.rename(path.with_name(f".{path.name}.123"))  # what a killed writer leaves
    pretrain("run", "--steps", "2", "--resume")
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-2"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--steps 3", "this run has steps 2, not 3"),
        ("--seed 7", "this run has seed 0, not 7"),
        ("--arch vits8_reg4", "this run has arch"),
        ("--crops.locals 1", "this run has crops.locals 2, not 1"),
        ("--preset dino_vits16", "started with --preset demo, not dino_vits16"),
        ("--batch-size 4", "global batch"),
    ],
)
def test_a_continuation_with_other_settings_is_refused(pretrain, flags: str, line: str) -> None:
    pretrain("run", "--steps", "2")
    with pytest.raises(ConfigError, match=line):
        pretrain("run", *([] if flags.startswith("--steps") else ["--steps", "2"]), *flags.split(), "--resume")


def test_the_global_batch_may_be_divided_otherwise(pretrain) -> None:
    run = pretrain("run", "--steps", "4", "--checkpoint-every", "2")
    (run / "checkpoints/step-4").rename(run / "checkpoints/.step-4.1")
    pretrain("run", "--steps", "4", "--batch-size", "4", "--compute.accumulate", "2", "--resume")
    assert (run / "latest").read_text() == "step-4\n"


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        ("student/model.safetensors", "truncate", "student: cannot be loaded as Dinov2Model"),
        ("heads.safetensors", "truncate", "heads.safetensors: cannot be read as safetensors"),
        ("optimizer.safetensors", "remove", "optimizer.safetensors: cannot be read"),
        ("state.json", "truncate", "state.json: cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named(pretrain, name: str, damage: str, line: str) -> None:
    run = pretrain("run", "--steps", "4", "--checkpoint-every", "2", "--faults.keep-last", "1")
    last = run / "checkpoints/step-4"
    last.rename(run / "checkpoints/step-3")  # as if the run had been cut here
    path = run / "checkpoints/step-3" / name
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match=line):
        pretrain("run", "--steps", "4", "--resume")
