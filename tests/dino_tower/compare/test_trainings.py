"""Trainings in processes of their own: their words, their looks, their time, and how they are stopped."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dino_tower.cli import main
from dino_tower.compare.benchmarking import bench_of
from dino_tower.compare.command import steps_of
from dino_tower.compare.pretraining import cautions_of, controls_of, merged, recipe_of
from dino_tower.compare.settings import read_words
from dino_tower.compare.trainings import last_words, plan_looks, seconds_at, seconds_by_step, train
from dino_tower.signals import StopSignals

NAMES = ("dino", "ibot", "mae", "ijepa", "dinov2")
# Stands in for a trainer: the trial run is done at once, 8 pictures a step at 80 a second; a training is not.
TRAINER = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
run, steps = Path(words[words.index("--output") + 1]), int(words[words.index("--steps") + 1])
print("steps", steps)
if "trials" not in run.parts:
    sys.exit("dino-tower: no training here")
(run / "checkpoints" / f"step-{steps}").mkdir(parents=True)
(run / "checkpoints" / f"step-{steps}" / "state.json").write_text(json.dumps({"steps": steps}))
rows = [{"kind": "start", "step": 0, "global_batch": 8}]
rows += [{"kind": "step", "step": s, "images_per_s": 80.0 if s > 5 else 1.0} for s in range(5, steps + 1, 5)]
(run / "log.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


def asked(words: str = "") -> Any:
    return read_words(shlex.split(f"--data scenes --steps 9 --output out --objectives dino,ijepa {words}"), NAMES)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 100, 1999, 2000, 12_345, 100_000])
def test_looks_are_few_even_and_end_at_the_end(steps: int) -> None:
    looks = plan_looks(steps, 4)
    assert looks.steps[-1] == steps and 1 <= len(looks.steps) <= 5 and len(looks.steps) >= min(steps, 3)
    assert all(step % looks.keep_every == 0 for step in looks.steps[:-1])
    assert looks.keep_every % looks.checkpoint_every == 0 and looks.checkpoint_every <= 500
    assert plan_looks(steps, 0).steps == ()


def test_all_share_architecture_crops_and_batch_and_keep_their_own_recipe() -> None:
    """ijepa_cpu has another class, other crops and no local views; with --own it keeps them."""
    plain, given = asked(), asked("--own arch,crops.flip --pretrain.crops.jitter-p 0.5 --for.ijepa.optim.base-lr 1e-4")
    dino, ijepa = (recipe_of(plain, name).config for name in ("dino", "ijepa"))
    assert (dino.arch, dino.model, dino.batch_size) == (ijepa.arch, ijepa.model, ijepa.batch_size)
    assert dino.crops.locals == 4 and ijepa.crops.locals == 0  # it would not look at them
    assert dino.crops.jitter_p == ijepa.crops.jitter_p and dino.crops.flip == ijepa.crops.flip == 0.5
    assert ijepa.objective == "ijepa" and ijepa.optim.clip == 0 and dino.optim.clip != 0
    own, other = (recipe_of(given, name) for name in ("ijepa", "dino"))
    assert own.config.arch == "vitt8_siglip" and own.config.crops.flip == 0 and own.config.crops.jitter_p == 0.5
    assert own.config.optim.base_lr == 1e-4 and other.config.optim.base_lr == dino.optim.base_lr
    assert set(controls_of([recipe_of(plain, name) for name in ("dino", "ijepa")]).values()) == {"random"}
    demo = recipe_of(asked("--preset demo --recipes cpu"), "ijepa")
    assert demo.preset == "ijepa_cpu" and demo.config.crops.grayscale_p == 0 and demo.config.model.heads == 4
    assert len(set(controls_of([own, other]).values())) == 2  # unlike networks start from unlike ones


@pytest.mark.parametrize(
    ("arch", "size", "patches"),
    [("vits16", 224, 28), ("vits8", 224, 32), ("resnet8", 64, 8), ("resnet18", 64, 4), ("resnet50", 224, 14)],
)
def test_whole_pictures_are_shown_at_twice_the_size_trained_at(arch: str, size: int, patches: int) -> None:
    """A ResNet, which has no patch in its name, was shown 32 steps of 32 pixels, 1,024, whatever it was trained at."""
    config = SimpleNamespace(arch=arch, crops=SimpleNamespace(global_size=size))
    assert bench_of(asked(), config).settings.tokens == patches


def test_a_class_token_that_nobody_trained_is_told() -> None:
    """k-NN of I-JEPA under another objective's architecture stood beside DINO's as if both had been trained for it."""
    shared, own = asked(), asked("--own arch")
    [line] = cautions_of([recipe_of(shared, name) for name in ("dino", "ijepa")])
    assert line.startswith("I-JEPA's class token is asked for by no loss")
    assert cautions_of([recipe_of(own, "ijepa")]) == cautions_of([recipe_of(shared, "dino")]) == []


def test_equal_operations_are_fewer_steps_for_who_does_more_in_each() -> None:
    words = shlex.split("--data scenes --tflops 64 --output out --objectives dino,mae")
    found = read_words(words, NAMES)
    dino, mae = (recipe_of(found, name) for name in ("dino", "mae"))
    assert (steps_of(found, dino, 4.0), steps_of(found, mae, 1.0)) == (250, 1000)  # batches of 64
    assert steps_of(found, mae, 1e9) == 1 and steps_of(asked(), mae, 1.0) == 9


def test_a_later_word_takes_the_place_of_an_earlier_one() -> None:
    assert merged(["--a", "1", "2", "--b-c", "3"], ["--a=4", "--d", "5"]) == ["--b-c", "3", "--a=4", "--d", "5"]
    assert merged(["--b-c", "3"], ["--b_c", "4"]) == ["--b_c", "4"]


def test_words_are_sorted_by_whom_they_are_for() -> None:
    found = asked('--pretrain.crops.locals 2 --eval.limit 30 --seeds 3 --eval scenes:hard --launcher "a b" -- --lr 1 2')
    assert found.words == ("--crops.locals", "2", "--lr", "1", "2") and found.benchmark == ("--limit", "30")
    assert (found.seeds, found.evaluate, found.launcher) == (3, ("scenes:hard",), ("a", "b"))


def test_time_is_that_of_the_steps_that_are_kept(tmp_path: Path) -> None:
    """A run that was cut off at step 25 and went on from 20: what it did again counts once."""
    rows = [
        {"kind": "start", "step": 0, "global_batch": 10}, {"kind": "step", "step": 10, "images_per_s": 10.0},
        {"kind": "step", "step": 20, "images_per_s": 100.0}, {"kind": "step", "step": 25, "images_per_s": 1.0},
        {"kind": "start", "step": 20, "global_batch": 10}, {"kind": "step", "step": 30, "images_per_s": 50.0},
    ]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = seconds_by_step(tmp_path)
    assert [step for step, _ in curve] == [0, 10, 20, 30]
    assert [seconds for _, seconds in curve] == pytest.approx([0, 10, 11, 13])
    assert [seconds_at(curve, step) for step in (0, 5, 10, 25, 30, 99)] == pytest.approx([0, 5, 10, 12, 13, 13])


def test_a_stop_signal_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    """The trainer says goodbye before it goes."""
    says = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); time.sleep(60)"
    signals, log = StopSignals(), tmp_path / "logs" / "one.txt"
    signals.received = "SIGTERM"
    start = time.monotonic()
    # -c takes what follows, the module's name too, for its own words
    code = train([], tmp_path / "run", log, [sys.executable, "-c", says], signals)
    assert code in (3, -15) and time.monotonic() - start < 30  # -15: it was told before it listened
    assert "-m dino_tower.pretrain --output" in log.read_text()


def test_why_a_training_ended_is_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "one.txt"
    log.write_text("$ python ...\nsome lines\ndino-tower: the disk is full\n\n")
    assert last_words(log) == "the disk is full"


def test_equal_time_is_as_many_steps_as_fit(tmp_path: Path, capfd: Any) -> None:
    """0.1 s a step, the slow first rows left out: 30 steps in 3 s. Asked again, nothing is measured again."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    launcher = f"{sys.executable} {tmp_path / 'trainer.py'}"
    words = ["compare-objectives", "--objectives", "dino", "--data", "scenes", "--minutes", "0.05", "--seeds", "1",
             "--output", str(tmp_path / "out"), "--launcher", launcher]  # fmt: skip
    for _ in range(2):
        assert main(words) == 2  # the trainer trains nothing
        said = capfd.readouterr()
        assert "no training came to its end; the last one said: no training here" in said.err
        assert "training 1/1  dino, seed 0: 30 steps" in said.out
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["objectives"]["dino"]["steps"] == 30
    printed = (tmp_path / "out" / "logs" / "trial-dino.txt").read_text()
    assert printed.count("\nsteps 40\n") == 1
