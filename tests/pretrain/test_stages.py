"""The high-resolution stage: larger views from the weights of a run, with its heads, and the same features at first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dino_tower import export_tower, load_tower
from dino_tower.errors import ConfigError
from dino_tower.pretrain.config import load_preset, read_config

STILL = ("--steps", "1", "--optim.base-lr", "0", "--optim.min-lr", "0", "--teacher.momentum", "1")
OBJECTIVES = {
    "dino": (),
    "ibot": ("--objective", "ibot", "--ibot.head", "mlp"),
    "dinov2": (
        "--objective",
        "dinov2",
        "--ibot.head",
        "separate",
        "--loss.centring",
        "sinkhorn",
        "--arch",
        "vits8_reg4",
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_stage_starts_where_its_run_ended(pretrain, tmp_path: Path, name: str) -> None:
    """At the new size the started network says what the exported tower says there, and heads and centres came along."""
    first = pretrain("first", *OBJECTIVES[name], "--steps", "2", "--teacher.momentum", "0.5")
    assert export_tower(first, tmp_path / "tower") == 0
    flags = ("--stage", "hires", "--init-from", str(first), *OBJECTIVES[name], *STILL)
    second = pretrain("second", *flags, "--crops.global-size", "72", "--crops.local-size", "40")
    x = torch.randn(2, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    started, exported = load_tower(second)(x), load_tower(tmp_path / "tower")(x)
    assert load_tower(second).model.config.image_size == 72
    assert torch.allclose(started.patches, exported.patches, atol=1e-5)
    assert torch.allclose(started.cls, exported.cls, atol=1e-5)
    before, after = (
        load_file(run / f"checkpoints/step-{step}/heads.safetensors") for run, step in ((first, 2), (second, 1))
    )
    assert before.keys() == after.keys()
    heads = [key for key in before if key.startswith("student.") and "running" not in key and "num_batches" not in key]
    assert heads and all(torch.equal(before[key], after[key]) for key in heads)
    assert all(torch.equal(after[key], after[key.replace("teacher.", "student.", 1)]) for key in heads)
    centres = [key for key in before if "centre" in key]
    assert len(centres) == {"dino": 1, "ibot": 2, "dinov2": 0}[name]
    for key in centres:  # moved by one step, of momentum 0.9, from where it was
        assert torch.nn.functional.cosine_similarity(before[key], after[key]).item() > 0.5


def test_the_teacher_of_a_run_and_what_the_new_run_lacks(pretrain, capsys) -> None:
    """Its own head with its own backbone; a part that the run has not is new; one of another size is refused."""
    first = pretrain("first", "--steps", "3", "--teacher.momentum", "0.5", "--head.freeze-epochs", "0")
    flags = ("--init-from", f"{first}@teacher", *STILL)
    capsys.readouterr()
    second = pretrain("second", *flags, "--objective", "ibot", "--ibot.head", "separate")
    said = capsys.readouterr().out
    assert f"from step 0 with the weights of {first}@teacher, its head, centre; new: patch_centre, patch_head" in said
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_tower(second)(x).patches, load_tower(f"{first}@teacher")(x).patches)
    before, after = (
        load_file(run / f"checkpoints/step-{step}/heads.safetensors") for run, step in ((first, 3), (second, 1))
    )
    key = "last_layer.weight_v"
    assert torch.equal(after[f"student.{key}"], before[f"teacher.{key}"])
    assert not torch.equal(before[f"student.{key}"], before[f"teacher.{key}"])
    with pytest.raises(ConfigError, match=r"student\.last_layer\.weight_g has \(64, 1\) and the new run \(32, 1\)"):
        pretrain("third", "--init-from", str(first), *STILL, "--head.prototypes", "32")
    assert not (first.parent / "third").exists()
    fresh = pretrain("third", "--init-from", str(first), *STILL, "--init-heads", "false")
    assert "; heads are new" in capsys.readouterr().out
    new = load_file(fresh / "checkpoints/step-1/heads.safetensors")
    assert not torch.equal(new[f"student.{key}"], before[f"student.{key}"])


def test_a_stage_goes_on_as_if_it_had_never_stopped(pretrain) -> None:
    """Also when the run that it came from has gone: what it took is in its own checkpoints."""
    first = pretrain("first", "--objective", "ibot", "--steps", "1")
    flags = ("--stage", "hires", "--init-from", str(first), "--objective", "ibot", "--crops.global-size", "48")
    whole = pretrain("whole", *flags, "--steps", "2", "--checkpoint-every", "1")
    cut = whole.with_name("cut")
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-2")
    shutil.rmtree(first)
    pretrain("cut", *flags, "--resume", "--steps", "2", "--checkpoint-every", "1")
    for part in ("student/model", "teacher/model", "heads", "optimizer"):
        a, b = (load_file(run / f"checkpoints/step-2/{part}.safetensors") for run in (whole, cut))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), part


@pytest.mark.parametrize("arch", ["vits8_siglip", "vits8_clip", "vits8_rope"])
def test_every_class_takes_its_positions_along(pretrain, arch: str) -> None:
    flags = ("--arch", arch, "--model.drop-path", "0")
    first = pretrain("first", *flags, "--steps", "1")
    second = pretrain(
        "second", *flags, *STILL, "--stage", "hires", "--init-from", str(first), "--crops.global-size", "56"
    )
    x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(load_tower(second)(x).patches, load_tower(first)(x).patches, atol=1e-5)


def test_the_settings_of_a_stage_are_those_of_its_run_at_a_larger_size(pretrain) -> None:
    first = pretrain("first", "--steps", "2", "--seed", "3")
    words = ["--stage", "hires", "--init-from", str(first), "--data", "scenes", "--output", "x"]
    config = read_config(words)
    assert (config.crops.global_size, config.crops.local_size, config.model.width, config.seed) == (72, 40, 32, 3)
    assert config.steps == 10_000 and config.recipe_epochs == load_preset("demo").epochs
    assert config.optim.base_lr == pytest.approx(load_preset("demo").optim.base_lr / 10)
    assert config.optim.freeze_backbone_epochs == 0 and config.stage == "hires"
    longer = read_config([*words, "--epochs", "3"])  # the stage's steps went before what was asked for
    assert (longer.epochs, longer.steps) == (3, None)
    changed = read_config([*words, "--crops.global-size", "64", "--steps", "7", "--optim.base-lr", "1"])
    assert (changed.crops.global_size, changed.steps, changed.optim.base_lr) == (64, 7, 1)


def test_a_stage_from_weights_without_heads_warms_them_up() -> None:
    words = ["--stage", "hires", "--preset", "dinov2_vitl14", "--init-from", "x/y", "--data", "scenes", "--output", "x"]
    config, preset = read_config(words), load_preset("dinov2_vitl14")
    assert config.optim.freeze_backbone_epochs == pytest.approx(0.1 * preset.epochs)
    file = load_preset("dinov2_hires")
    assert (file.crops, file.steps, file.optim.base_lr) == (config.crops, config.steps, config.optim.base_lr)
    assert (file.head, file.loss, file.ibot, file.model, file.teacher) == (
        preset.head, preset.loss, preset.ibot, preset.model, preset.teacher,
    )  # fmt: skip
    words[words.index("dinov2_vitl14")] = "dinov2_hires"
    assert read_config(words).optim.base_lr == file.optim.base_lr  # not lowered twice


def test_a_stage_that_cannot_be(pretrain) -> None:
    rest = ["--data", "scenes", "--output", "x"]
    with pytest.raises(ConfigError, match="stage hires goes on from weights: --init-from RUN"):
        read_config(["--stage", "hires", *rest])
    first = pretrain("first", "--steps", "1")
    with pytest.raises(ConfigError, match=r"crops\.global_size is 32, and .*first was trained at 32: give more"):
        read_config(["--stage", "hires", "--init-from", str(first), "--crops.global-size", "32", *rest])
