"""What goes wrong inside a run: a NaN on one process, a process that dies, a signal at a bad moment, a run gone bad."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from dino_tower.checkpoint import checkpoints
from dino_tower.errors import ConfigError
from dino_tower.signals import Stopped, StopSignals


def rows(run: Path, kind: str) -> list[dict]:
    path = run / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def weights(run: Path, step: int) -> dict[str, bytes]:
    folder = run / f"checkpoints/step-{step}"
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}
    assert len(found) == 4
    return found


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


# In every process: views of the picture in one flat colour become NaN, and all numbers that a step may change are
# hashed at the beginning of each step.
PLANTED = (1, 2, 3)
SPY = """
import hashlib, json, os
import torch
from dino_tower.pretrain import train
place = {place!r} + os.environ["RANK"]
seen = []

class Planted(train.Normalise):
    def __call__(self, view):
        pixels = super().__call__(view)
        pixels[(view == torch.tensor({colour!r}, dtype=torch.uint8)).all(-1).flatten(1).all(1)] = float("nan")
        return pixels

class Watched(train.Trained):
    def __init__(self, *parts):
        super().__init__(*parts)
        seen.append(self)

def watched(optimizer, *rates):
    digest = hashlib.sha256()
    trained = seen[0]
    for module in (trained.student, trained.teacher, trained.objective):
        for value in module.state_dict().values():
            digest.update(value.numpy().tobytes())
    for state in trained.optimizer.state.values():
        for value in state.values():
            digest.update(value.numpy().tobytes())
    with open(place, "a") as file:
        file.write(digest.hexdigest() + "\\n")
    return set_rates(optimizer, *rates)

set_rates = train.set_rates
train.Normalise, train.Trained, train.set_rates = Planted, Watched, watched
"""


def test_a_nan_in_one_picture_of_one_process_steps_nothing_anywhere(lives, tiny, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(48):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels if i else np.full_like(pixels, PLANTED)).save(tmp_path / f"photos/{i:02d}.png")
    # a joint batch norm would carry the NaN to the other process in the forward pass already
    flags = "--steps 6 --batch-size 4 --seed 3 --crops.jitter-p 0 --head.batch-norm false --data".split()
    words = ["pretrain", *tiny(*flags, str(tmp_path / "photos")), "--output", str(tmp_path / "run")]
    code = SPY.format(place=str(tmp_path / "hashes-"), colour=PLANTED)
    ranks = lives.start_ranks(words, 2, code=code)
    assert [lives.wait(rank) for rank in ranks] == [0, 0]
    (bad,) = rows(tmp_path / "run", "bad_step")  # six steps of eight are one epoch: the picture is met once
    assert "00.png" in bad["ids"] and len(set(bad["ids"])) == 8
    assert sorted(loss == "nan" for loss in bad["losses"]) == [False, True]
    hashes = [(tmp_path / f"hashes-{rank}").read_text().split() for rank in range(2)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 6
    at = bad["step"]
    assert at < 5, "choose another seed: nothing comes after the bad step"
    assert hashes[0][at + 1] == hashes[0][at]
    assert len(set(hashes[0])) == 5  # every other step changed something


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_dies_and_the_launcher_starts_them_again(lives, tiny, tmp_path: Path, victim: int) -> None:
    """The one that is left must end by itself; then comes the same command line, without --resume. The long form, with
    torchrun itself, is in soak_resume.py."""
    flags = ("--steps", "12", "--batch-size", "4", "--checkpoint-every", "3", "--model.drop-path", "0.1")
    words = ["pretrain", *tiny(*flags), "--output"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert [lives.wait(rank) for rank in lives.start_ranks([*words, str(whole)], 2)] == [0, 0]
    ranks = lives.start_ranks([*words, str(run)], 2)
    wait_for(lambda: (run / "checkpoints/step-3").is_dir())
    lives.kill(ranks[victim])
    assert lives.wait(ranks[1 - victim], 30) == 2
    said = lives.said(ranks[1 - victim])
    assert "Traceback" not in said
    assert ("dino-tower: another process of this run has ended" in said) == (victim == 1)  # the first one speaks
    assert not (run / "checkpoints/step-12").exists()
    again = {"TORCHELASTIC_RESTART_COUNT": "1"}
    assert [lives.wait(rank) for rank in lives.start_ranks([*words, str(run)], 2, env=again)] == [0, 0]
    assert weights(run, 12) == weights(whole, 12)
    assert rows(run, "start")[1]["step"] in (3, 6, 9)


def test_a_loader_process_that_is_killed_ends_the_run_with_a_line(lives, tiny, tmp_path: Path) -> None:
    words = ["pretrain", *tiny("--steps", "100000", "--workers", "1"), "--output", str(tmp_path / "run")]
    child = lives.start({"words": words})
    wait_for(lambda: rows(tmp_path / "run", "step"))
    (worker,) = psutil.Process(child).children()
    worker.kill()
    code, said = lives.wait(child, 60), lives.said(child)
    assert code == 2, said
    assert "dino-tower: a loader process was killed" in said and "Traceback" not in said


def test_sigterm_before_the_first_step_ends_a_run_within_ten_seconds(lives, tiny, tmp_path: Path) -> None:
    """A run that gathered thousands of pictures for its monitor heard the signal only after its first step."""
    run = tmp_path / "run"
    monitor = ("--monitor.minutes", "1", "--monitor.knn-images", "10000")
    words = ["pretrain", *tiny("--steps", "100000", "--workers", "1", *monitor), "--output", str(run)]
    child = lives.start({"words": words})
    wait_for(lambda: rows(run, "start"))
    start = time.monotonic()
    os.kill(child, signal.SIGTERM)
    assert lives.wait(child) == 3
    assert time.monotonic() - start < 10
    said = lives.said(child)
    assert "stopped by SIGTERM before a step was done; go on with --resume auto" in said
    assert not checkpoints(run / "checkpoints") and "Traceback" not in said


def test_work_that_a_signal_may_break_off() -> None:
    done = []

    def work() -> None:
        done.append("begun")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        done.append("not reached")

    with StopSignals() as signals:
        signals.patient = True
        signals.breakable(work)
        assert signals.received == "SIGTERM" and signals.patient
        signals.breakable(work)  # not even begun
        os.kill(os.getpid(), signal.SIGUSR1)  # remembered
        assert done == ["begun"]
    with StopSignals() as signals, pytest.raises(Stopped):
        work()
    assert not issubclass(Stopped, Exception)  # what takes every Exception for a broken picture lets it pass


def test_a_directory_left_by_a_run_killed_in_its_first_moment_is_as_good_as_none(pretrain, tmp_path: Path) -> None:
    """It held a lock and no settings, and was taken for something that is not a run."""
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".config.yaml.123"):
        (run / name).write_text("half")
    pretrain("run", "--steps", "1", "--resume", "auto")
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".lock"]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool]], None]:
    """poison(chosen): all steps, counted as they are computed, for which chosen(number) holds have a NaN."""
    from dino_tower.pretrain import train

    def choose(chosen: Callable[[int], bool]) -> None:
        count = iter(range(10**6))

        class Poisoned(train.Normalise):
            def __call__(self, view):
                return super().__call__(view) * (float("nan") if chosen(next(count) // 4) else 1.0)

        monkeypatch.setattr(train, "Normalise", Poisoned)

    return choose


def test_too_many_bad_steps_go_back_and_the_data_moves_on(pretrain, poison) -> None:
    flags = ("--steps", "12", "--checkpoint-every", "2", "--faults.max-bad-steps", "2", "--faults.keep-last", "9")
    poison(lambda number: number in (5, 6, 7))
    run = pretrain("run", *flags)
    assert [row["step"] for row in rows(run, "bad_step")] == [5, 6, 7]
    (back,) = rows(run, "rollback")  # step-4 is the last good one: at step 6 none was written
    assert back["step"] == 4 and back["data_offset"] == 4 and "3 steps in a row up to step 8" in back["reason"]
    assert [row["step"] for row in rows(run, "step")] == [*range(1, 9), *range(5, 13)]
    state = json.loads((run / "checkpoints/step-12/state.json").read_text())
    assert (state["data_offset"], state["rollbacks"], state["bad_in_a_row"]) == (4, 1, 0)
    # a run that is cut after it went back knows where in the data it stands
    whole = weights(run, 12)
    for step in (10, 12):
        (run / f"checkpoints/step-{step}").rename(run / f"checkpoints/.step-{step}.1")
    poison(lambda number: False)
    pretrain("run", *flags, "--resume")
    assert weights(run, 12) == whole


def test_a_run_that_goes_bad_again_and_again_stops_and_says_what_it_saw(pretrain, poison, tmp_path: Path) -> None:
    flags = ("--steps", "12", "--checkpoint-every", "2", "--faults.max-bad-steps", "1", "--faults.max-rollbacks", "2")
    poison(lambda number: number >= 5)
    with pytest.raises(
        ConfigError, match=r"2 steps in a row up to step 6 had a non-finite .* after going back 2 times"
    ):
        pretrain("run", *flags)
    assert len(rows(tmp_path / "run", "rollback")) == 2
    poison(lambda number: True)
    with pytest.raises(ConfigError, match=r"before the first checkpoint; their images are in log.jsonl"):
        pretrain("never", *flags)
