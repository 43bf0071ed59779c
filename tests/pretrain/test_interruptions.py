"""A run can be ended at any instant and goes on to the same weights; what cannot go on says why."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dino_tower.checkpoint import checkpoints
from dino_tower.errors import ConfigError


@pytest.fixture
def start(lives, tiny) -> Callable[..., int]:
    """start(DIR, *flags): the main job in a process of its own; its process id."""
    return lambda output, *flags: lives.start({"words": ["pretrain", *tiny(*flags), "--output", str(output)]})


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def files(run: Path, step: int) -> dict[str, bytes]:
    """The bytes of every weight file of a checkpoint."""
    folder = run / f"checkpoints/step-{step}"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_killed_twice_and_resumed_it_ends_with_the_same_weights(start, lives, tmp_path: Path) -> None:
    """Resumed at once, while the loader workers of the killed process still live. soak_resume.py has more of it."""
    flags = ("--steps", "40", "--checkpoint-every", "4", "--model.drop-path", "0.1", "--workers", "1")
    assert lives.wait(start(tmp_path / "whole", *flags)) == 0
    cut = tmp_path / "cut"
    for passed in (5, 17):  # seen to be past this step, then killed wherever it happens to be
        child = start(cut, *flags, "--resume", "auto")
        wait_for(lambda p=passed: f'"kind": "step", "step": {p},' in read(cut / "log.jsonl"))
        lives.kill(child)
    assert lives.wait(start(cut, *flags, "--resume")) == 0
    assert files(tmp_path / "whole", 40) == files(cut, 40)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_and_writes(start, lives, tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    child = start(run, "--steps", "100000", "--workers", "1")
    wait_for(lambda: '"step": 3,' in read(run / "log.jsonl"))
    begin = time.monotonic()
    os.kill(child, number)
    assert lives.wait(child) == 3
    assert time.monotonic() - begin < 10  # and a step, which takes no time here
    step = int((run / "latest").read_text().removeprefix("step-"))
    said = lives.said(child)
    assert f"stopped by {signal.Signals(number).name} after step {step}" in said and "--resume" in said
    assert (run / f"checkpoints/step-{step}/state.json").is_file()


def test_two_runs_on_one_directory(start, lives, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(run, "--steps", "100000")
    wait_for(lambda: '"step": 1,' in read(run / "log.jsonl"))
    second = start(run, "--steps", "100000", "--resume")
    assert lives.wait(second) == 2
    assert "another process is training this run" in lives.said(second)
    assert lives.poll(first) is None
    lives.kill(first)


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


def cut(run: Path, step: int) -> None:
    """As if the run had been ended before it wrote this checkpoint."""
    shutil.rmtree(run / f"checkpoints/step-{step}")


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
    cut(pretrain("run", "--steps", "2", "--checkpoint-every", "1"), 2)
    with pytest.raises(ConfigError, match=line):
        pretrain("run", *([] if flags.startswith("--steps") else ["--steps", "2"]), *flags.split(), "--resume")


def test_the_global_batch_may_be_divided_otherwise(pretrain) -> None:
    run = pretrain("run", "--steps", "4", "--checkpoint-every", "2")
    cut(run, 4)
    pretrain("run", "--steps", "4", "--batch-size", "4", "--compute.accumulate", "2", "--resume")
    assert (run / "latest").read_text() == "step-4\n"


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        ("student/model.safetensors", "truncate", "student/model.safetensors: damaged"),
        ("heads.safetensors", "flip", "heads.safetensors: damaged"),
        ("optimizer.safetensors", "remove", "optimizer.safetensors: cannot be read"),
        ("state.json", "truncate", "state.json: damaged"),
        ("digests.json", "remove", "digests.json: cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named(pretrain, name: str, damage: str, line: str) -> None:
    run = pretrain("run", "--steps", "4", "--checkpoint-every", "2")
    cut(run, 4)
    path = run / "checkpoints/step-2" / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "flip":  # one bit in the middle of the numbers: safetensors itself would read it as it is
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=line):
        pretrain("run", "--steps", "4", "--resume")
