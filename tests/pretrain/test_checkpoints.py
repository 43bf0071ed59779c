"""Checkpoints survive kills, full disks, and directories that may not be written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from dino_tower.architectures import build
from dino_tower.checkpoint import BackgroundWriter, check_digests, replace_text, step_of, write_digests
from dino_tower.config import to_tree
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.pretrain.algorithms.heads import DinoHead
from dino_tower.pretrain.network.student_teacher import Network, make_teacher
from dino_tower.pretrain.objectives.objective import make_objective
from dino_tower.pretrain.settings import Config, HeadConfig
from dino_tower.pretrain.state import Position, Trained, restore, snapshot
from dino_tower.run.directory import RunDirectory

NOBODY = 65534


def make_trained() -> Trained:
    """The smallest network with all that a checkpoint holds."""
    student = Network(build("vitt8", image_size=16, width=16, depth=1, heads=1), head=DinoHead(16, 64, 16, 8))
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad])
    for p in student.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return Trained(student, make_teacher(student), make_objective(Config(head=HeadConfig(prototypes=64))), optimizer)


def numbers(trained: Trained) -> list[torch.Tensor]:
    """Every tensor of it that is saved."""
    states = [value for state in trained.optimizer.state.values() for value in state.values()]
    modules = (trained.student, trained.teacher, trained.objective)
    return [*states, *(value for module in modules for value in module.state_dict().values())]


class Writer:
    """Writes checkpoints as the training does, one after the other, all numbers of the N-th being N."""

    def __init__(self, root: Path) -> None:
        transformers.logging.disable_progress_bar()
        self.config, self.trained = Config(), make_trained()
        self.facts = {"global_batch": 8, "images": 8, "steps": 10**9, "resolved": to_tree(self.config)}
        self.processor, self.run = processor_for(16, 8), RunDirectory(root)

    def write(self, report: int) -> None:
        """Go on from the newest checkpoint for ever; the number of each that is done goes to a pipe."""
        self.run.open(self.config)
        newest, writer = self.run.newest(), BackgroundWriter()
        step = step_of(newest) if newest else 0
        while True:
            step += 1
            for value in numbers(self.trained):
                value.data.fill_(step)
            write = snapshot(self.trained, Position(step), self.processor, self.facts)
            writer.submit(lambda step=step, write=write: self.run.write_checkpoint(step, write, 2, 0))
            os.write(report, f"{step - 1}\n".encode())  # `submit` waited for the one before

    def check(self, at_least: int) -> int:
        """The step of the newest checkpoint, which loads, is whole, and is no older than what was reported."""
        newest = self.run.newest()
        if newest is None:
            assert at_least == 0
            return 0
        position = restore(self.trained, newest, self.config, 8)
        assert newest.name == f"step-{position.step}" and position.step >= at_least
        assert all((value == position.step).all() for value in numbers(self.trained))
        return position.step


def kill_while_writing(folder: Path, kills: int) -> dict[str, int]:
    """Kill writers at random instants; after each, the newest whole checkpoint must load.

    Returns how often the kill met a checkpoint half written, one half deleted, and neither.
    """
    writer, rng = Writer(folder / "run"), np.random.default_rng(0)
    met, reported = {"half written": 0, "half deleted": 0, "between": 0}, 0
    cycle = 0.0
    for number in range(kills):
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            writer.write(theirs)
        os.close(theirs)
        with os.fdopen(ours) as reports:
            first = reports.readline()  # it writes now
            if number == 0:
                reports.readline()  # the first takes longer
                start = time.monotonic()
                for _ in range(4):
                    reports.readline()
                cycle = (time.monotonic() - start) / 4
            time.sleep(rng.uniform(0, 3 * cycle))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            reported = max([reported, int(first), *map(int, reports.read().split())])
        left = [path.name for path in writer.run.checkpoints.glob(".step-*")]
        kind = "half deleted" if any(name.endswith(".old") for name in left) else "half written"
        met[kind if left else "between"] += 1
        newest = writer.check(reported)
        if number % 20 == 19:
            print(f"{number + 1} kills, newest checkpoint step-{newest}, {met}", flush=True)
    return met


def test_ten_kills_while_writing(tmp_path: Path) -> None:
    """soak_checkpoints.py is the long form."""
    met = kill_while_writing(tmp_path, 10)
    assert sum(met.values()) == 10 and met["between"] < 10


def weights(run: Path, step: int) -> dict[str, bytes]:
    folder = run / f"checkpoints/step-{step}"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


FLAGS = ("--steps", "6", "--checkpoint-every", "2", "--faults.keep-last", "9")


@pytest.fixture(scope="module")
def whole(lives, tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert lives.wait(lives.start({"words": ["pretrain", *tiny(*FLAGS), "--output", str(run)]})) == 0
    return run


def cut(whole: Path, run: Path) -> Path:
    """A copy that ended after its first checkpoint."""
    shutil.copytree(whole, run)
    for step in (4, 6):
        shutil.rmtree(run / f"checkpoints/step-{step}")
    return run


def only_line(said: str) -> str:
    """What was said beside the announcement, which stands on stdout, and the progress bar."""
    (line,) = [line for line in said.splitlines() if line.startswith("dino-tower: ")]
    assert "Traceback" not in said
    return line


def test_a_full_disk_leaves_the_last_checkpoint_whole(lives, tiny, whole: Path, tmp_path: Path) -> None:
    """The disk is full for files of more than so many bytes: one less than the largest of a checkpoint."""
    run = cut(whole, tmp_path / "run")
    words = ["pretrain", *tiny(*FLAGS), "--output", str(run), "--resume"]
    largest = max(len(data) for data in weights(run, 2).values())
    child = lives.start({"words": words, "file_size": largest - 1})
    assert lives.wait(child) == 2
    line = only_line(lives.said(child))
    assert "step-4: cannot be written" in line and "file too large" in line and "step-2 is whole" in line
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    assert weights(run, 2) == weights(whole, 2)
    assert lives.wait(lives.start({"words": words})) == 0
    assert weights(run, 6) == weights(whole, 6)


@pytest.fixture
def small_disk(tmp_path: Path, whole: Path) -> Iterator[Path | None]:
    """A disk with room for one checkpoint and a half; None where nothing may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    size = 3 * sum(len(data) for data in weights(whole, 2).values()) // 2
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = os.getuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield place if mounted else None
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up(lives, tiny, whole: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        return  # the limit on the size of files above is then the only full disk
    words = ["pretrain", *tiny(*FLAGS), "--output", str(small_disk / "run")]
    child = lives.start({"words": words})
    assert lives.wait(child) == 2
    line = only_line(lives.said(child))
    assert "no space left on device" in line and "step-2 is whole" in line
    assert weights(small_disk / "run", 2) == weights(whole, 2)
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert lives.wait(lives.start({"words": [*words, "--resume"]})) == 0
    assert weights(small_disk / "run", 6) == weights(whole, 6)


@pytest.mark.parametrize("closed, step", [("run/checkpoints", "run/checkpoints/step-4"), ("run", "run")])
def test_what_may_not_be_written(lives, tiny, whole: Path, open_path: Path, closed: str, step: str) -> None:
    """As a user without rights: root may write anywhere. A first run, as root, loads what that user may not read."""
    run = cut(whole, open_path / "run")
    warm = ["pretrain", *tiny("--steps", "1"), "--output", str(open_path / "warm")]
    owner = f"chown -R {NOBODY} {open_path}; " if os.getuid() == 0 else ""
    words = ["pretrain", *tiny(*FLAGS), "--resume", "--output", str(run)]
    child = lives.start(
        {"words": warm}, {"shell": f"{owner}chmod 555 {open_path / closed}"}, {"words": words, "user": NOBODY}
    )
    assert lives.wait(child) == 2
    (open_path / closed).chmod(0o755)
    assert f"{step}: cannot be written: permission denied" in only_line(lives.said(child))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    assert weights(run, 2) == weights(whole, 2)


def test_a_log_that_cannot_be_written_ends_the_run(lives, tiny, tmp_path: Path) -> None:
    words = ["pretrain", *tiny("--steps", "100000"), "--output", str(tmp_path / "run")]
    child = lives.start({"words": words, "file_size": 12_000})
    assert lives.wait(child) == 2
    assert "run: cannot be written: file too large" in only_line(lives.said(child))


def test_digests_notice_every_change(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"abc")
    write_digests(tmp_path)
    check_digests(tmp_path)
    (tmp_path / "a/b").write_bytes(b"abd")
    with pytest.raises(ConfigError, match=r"a/b: damaged"):
        check_digests(tmp_path)
    (tmp_path / "a/b").unlink()
    with pytest.raises(ConfigError, match=r"a/b: cannot be read: no such file"):
        check_digests(tmp_path)


def test_a_failed_write_is_the_last_one() -> None:
    """The next checkpoint was once begun on the full disk, and the failure came out of another process's wait."""
    writer, written = BackgroundWriter(), []

    def fail() -> None:
        raise OSError("full")

    writer.submit(fail)
    writer.submit(lambda: written.append(1))
    assert writer.failed and not written
    with pytest.raises(OSError, match="full"):
        writer.join()


def test_a_small_file_that_cannot_be_written_leaves_nothing_aside(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "\ud800")
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"] and path.read_text() == "old"


def test_data_that_shrank_leaves_a_run_its_length(pretrain, write_photos, tmp_path: Path, capsys) -> None:
    """The new plan ended before the checkpoint's step: the loop was skipped, with exit code 3, at every resume."""
    photos = write_photos(tmp_path / "photos", 24)
    flags = ("--data", str(photos), "--epochs", "2", "--checkpoint-every", "2")
    run = pretrain("run", *flags)
    shutil.rmtree(run / "checkpoints/step-6")
    for path in sorted(photos.iterdir())[14:]:
        path.unlink()
    pretrain("run", *flags, "--resume")
    assert (run / "checkpoints/step-6").is_dir()
    assert "the data has 14 images and had 24" in capsys.readouterr().out
