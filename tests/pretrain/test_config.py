"""First contact: what a newcomer mistypes is answered in one line, with exit code 2 and nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from dino_tower.cli import main
from dino_tower.config import from_tree, to_tree
from dino_tower.errors import ConfigError
from dino_tower.pretrain.config import load_preset, preset_names, read_config
from dino_tower.pretrain.plan import make_plan
from dino_tower.pretrain.settings import Config, OptimConfig

PUBLISHED = ("dino_vits16", "dino_vits8", "dino_vitb16", "dino_vitb8", "dino_vits16_100ep", "dino_resnet50")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_opens_with_its_facts_and_resolves(name: str) -> None:
    from dino_tower.pretrain.config import preset_path

    text = preset_path(name).read_text()
    head = text[: text.index("arch:")].lower()
    for word in (f"--preset {name}", "hardware", "time", "expected"):
        assert word in head
    config = load_preset(name)
    assert from_tree(Config(), to_tree(config), "x") == config


def test_presets_are_what_users_need() -> None:
    assert {*PUBLISHED, "dino_cpu", "demo"} <= set(preset_names())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--preset dino_vits61 --data scenes --output OUT", "no preset 'dino_vits61'; did you mean 'dino_vits16'?"),
        ("--preset nowhere.yaml --data scenes --output OUT", "no file 'nowhere.yaml'"),
        ("--data scenes", "--output DIR is missing"),
        ("--output OUT", "--data SOURCE is missing"),
        ("--data scenes --output OUT --arch vits61", "no architecture 'vits61'; did you mean 'vits16'?"),
        ("--data scenes --output OUT --optim.bas-lr 1", "did you mean '--optim.base-lr'?"),
        ("--data scenes --output OUT --epochs 0", "epochs is 0; it must be above 0"),
        ("--data scenes --output OUT --teacher.momentum 1.5", "teacher.momentum is 1.5; it must lie between 0 and 1"),
        ("--data scenes --output OUT --batch-size 20000 --steps 1", "fewer than one global batch of 20000"),
        ("--data scenes --output OUT --crops.local-size 50", "not a multiple of the patch size"),
        ("--data scenes --output OUT --pixels.mean 1 1 1", "pixels.mean and pixels.std belong together"),
        ("--data scenes --output OUT --monitor.tracker tensorbord", "did you mean 'tensorboard'?"),
        ("--data scenes:esay --output OUT", "did you mean"),
        ("--data EMPTY --output OUT", "EMPTY"),
        ("--data TEXTS --output OUT", "TEXTS"),
        ("--data TEXT --output OUT", "did you mean"),
        ("--data scenes --output OUT --resume", "--resume: there is no run in"),
        ("--data scenes --output TEXTS", "holds something that is not a run"),
        ("--data scenes --output FILE", "a file of that name exists"),
        ("--data scenes --output OUT --init-from EMPTY", "cannot be loaded as Dinov2Model"),
    ],
)
def test_one_line_and_nothing_written(tmp_path: Path, monkeypatch, capsys, words: str, line: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision a process
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    Path("TEXTS").mkdir()
    for i in range(3):
        Path(f"TEXTS/{i}.txt").write_text("words")
    Path("FILE").write_text("x")
    if "--preset" not in words:
        words += " --preset demo"
    assert main(["pretrain", *words.split(), "--compute.cpu"]) == 2
    said = capsys.readouterr().err.strip()
    assert line in said and "\n" not in said
    assert not Path("OUT").exists()


def test_python_dash_m_says_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dino_tower.pretrain", "--preset", "dmo", "--data", "scenes", "--output", "OUT"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "did you mean 'demo'?" in done.stderr and not any(tmp_path.iterdir())


def test_print_config_is_a_preset(tmp_path: Path, capsys) -> None:
    assert main(["pretrain", "--preset", "demo", "--data", "scenes", "--print-config", "--optim.base-lr", "0.5"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    again = read_config(["--preset", str(path), "--output", "x"])
    assert again.optim.base_lr == 0.5 and again.data == ("scenes",)


def test_a_short_run_compresses_every_schedule() -> None:
    config = load_preset("dino_vits16_100ep")
    whole = make_plan(config, images=51200, world=8)
    assert (whole.steps, whole.steps_per_epoch, whole.compression) == (10_000, 100, 1.0)
    assert whole.peak_lr == pytest.approx(5e-4 * 512 / 256) and whole.lr.argmax() in (999, 1000)
    assert whole.frozen_steps == 100
    short = make_plan(from_tree(config, {"steps": 1000}, "x"), images=51200, world=8)
    assert short.frozen_steps == 10 and short.lr.argmax() in (99, 100) and short.lr[0] == 0
    assert any("compressed" in warning for warning in short.warnings)
    assert not any("compressed" in warning for warning in whole.warnings)
    longer = make_plan(from_tree(config, {"epochs": 200}, "x"), images=51200, world=8)
    assert longer.lr.argmax() in (999, 1000)  # a longer run keeps its warm-ups as they are


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_any_number_of_steps_works(steps: int) -> None:
    for name in PUBLISHED:
        plan = make_plan(from_tree(load_preset(name), {"steps": steps, "batch_size": 2}, "x"), images=1000, world=1)
        assert len(plan.lr) == len(plan.teacher_temp) == len(plan.momentum) == len(plan.weight_decay) == steps


def test_the_teacher_temperature_moves_once_an_epoch() -> None:
    plan = make_plan(load_preset("dino_vits16"), images=1024 * 5, world=16)
    by_epoch = plan.teacher_temp.reshape(800, 5)
    assert (by_epoch == by_epoch[:, :1]).all() and by_epoch[0, 0] == 0.04 and (by_epoch[30:] == 0.07).all()


def test_a_different_global_batch_is_said() -> None:
    assert any("global batch 64" in w for w in make_plan(load_preset("dino_vits16"), 5000, 1).warnings)


def test_resuming_a_run_of_a_misspelt_name_says_that_there_is_none(tmp_path: Path) -> None:
    """It said that --data is missing, which a run that goes on never needs."""
    with pytest.raises(ConfigError, match=r"--resume: there is no run in .*frist"):
        read_config(["--output", str(tmp_path / "frist"), "--resume"])


def test_a_gram_tower_that_nobody_asks_is_refused() -> None:
    """It was ignored without a word, as distil.teachers without their term never were."""
    with pytest.raises(ConfigError, match=r"gram\.tower is given and nobody asks it: set --terms\.gram 1"):
        read_config(["--data", "scenes", "--output", "x", "--gram.tower", "builtin:scenes"])


def test_a_rate_that_rises_is_pointed_out() -> None:
    """A small run of the ResNet preset kept the minimum of 80 GPUs, above its own peak."""
    plan = make_plan(Config(optim=OptimConfig(base_lr=0.001, min_lr=0.0048)), 1000, 1)
    assert any("is below optim.min_lr" in text for text in plan.warnings)
