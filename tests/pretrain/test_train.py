"""The main job as a person runs it: it trains, can be interrupted, and learns the same at any speed setting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dino_tower import load_tower
from dino_tower.checkpoint import checkpoints
from dino_tower.errors import ConfigError


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: both towers, both heads, the centre and the optimiser's state."""
    folder = run / "checkpoints" / f"step-{step}"
    found = {
        f"{file.relative_to(folder)}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    assert len({name.split("/")[0] for name in found}) == 4
    return found


def largest_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Key biases aside: their gradient is zero in truth and rounding in practice."""
    assert a.keys() == b.keys()
    names = [n for n in a if not n.endswith("/step") and "k_proj.bias" not in n and "key.bias" not in n]
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in names)


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    by_step = {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}
    return [by_step[step] for step in sorted(by_step)]


def test_a_run_leaves_a_tower_that_loads(pretrain) -> None:
    run = pretrain("run", "--steps", "4", "--monitor.minutes", "9", "--monitor.knn-images", "40")
    assert (run / "latest").read_text() == "step-4\n"
    kinds = [json.loads(line)["kind"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert kinds == ["start", "monitor", "step", "step", "step", "step", "checkpoint", "monitor", "end"]
    student, teacher = load_tower(run), load_tower(f"{run}@teacher")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = student(x)
    assert out.patches.shape == (2, 4, 4, 32) and out.cls.shape == (2, 32)
    assert not torch.equal(out.cls, teacher(x).cls)
    assert (run / "pictures/step-4/attention-0.png").is_file()


def test_a_resumed_run_has_the_weights_of_one_never_stopped(pretrain) -> None:
    whole = pretrain("whole", "--steps", "6", "--checkpoint-every", "3", "--model.drop-path", "0.2")
    cut = whole.with_name("cut")
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-6")
    pretrain("cut", "--resume", "--steps", "6", "--model.drop-path", "0.2")
    a, b = weights(whole, 6), weights(cut, 6)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_workers_do_not_change_the_run(pretrain) -> None:
    a = weights(pretrain("none", "--steps", "3"), 3)
    b = weights(pretrain("two", "--steps", "3", "--workers", "2"), 3)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_accumulation_equals_the_joint_batch(pretrain) -> None:
    flags = ("--steps", "6", "--head.batch-norm", "false")
    joint = pretrain("joint", *flags)
    parts = pretrain("parts", *flags, "--batch-size", "4", "--compute.accumulate", "2")
    assert largest_gap(weights(joint, 6), weights(parts, 6)) <= 1e-5


def test_activation_checkpointing_changes_nothing(pretrain) -> None:
    """The paths that drop path drops must be the same ones when activations are computed again."""
    flags = ("--steps", "3", "--model.drop-path", "0.3")
    plain = pretrain("plain", *flags)
    again = pretrain("again", *flags, "--compute.activation-checkpointing")
    assert largest_gap(weights(plain, 3), weights(again, 3)) == 0


def test_bf16_trains_the_same_within_its_rounding(pretrain) -> None:
    flags = ("--steps", "6", "--head.batch-norm", "false", "--optim.base-lr", "1e-4")
    single, half = pretrain("single", *flags), pretrain("half", *flags, "--compute.precision", "bf16")
    gaps = [abs(a - b) for a, b in zip(losses(single), losses(half), strict=True)]
    assert 0 < max(gaps) < 2**-9 / 0.1  # bfloat16 rounds by 2^-9, the logits are cosines over a temperature of 0.1
    state = weights(half, 6)
    assert all(t.dtype != torch.bfloat16 for t in state.values())  # the weights themselves stay fp32


def test_compiled_trains_the_same(pretrain) -> None:
    flags = ("--steps", "3", "--head.batch-norm", "false", "--model.depth", "1", "--crops.locals", "0")  # two graphs
    plain, compiled = pretrain("plain", *flags), pretrain("compiled", *flags, "--compute.compile")
    assert max(abs(a - b) for a, b in zip(losses(plain), losses(compiled), strict=True)) <= 1e-5
    assert largest_gap(weights(plain, 3), weights(compiled, 3)) <= 1e-4


@pytest.mark.parametrize("arch", ["vits16_reg4", "vits8_rope", "vitt8_siglip", "vitb16_clip"])
def test_every_class_trains_and_every_trained_weight_moves(pretrain, arch: str) -> None:
    """A parameter that asks for a gradient and gets none makes DDP wait for ever, and weight decay moves it."""
    run = pretrain("run", "--arch", arch, "--steps", "2", "--head.freeze-epochs", "0")
    names = {n.rpartition("/")[0] for n in load_file(run / "checkpoints/step-2/optimizer.safetensors")}
    trained = load_tower(run).model
    from dino_tower.architectures import build

    fresh = build(arch, image_size=32, width=32, depth=2, heads=2)
    asked = {f"backbone.{n}" for n, p in fresh.named_parameters() if p.requires_grad}
    assert asked <= names
    assert type(trained) is type(fresh)


@pytest.mark.parametrize("optimiser", ["sgd", "lars"])
def test_resnet_trains(pretrain, optimiser: str) -> None:
    run = pretrain(
        "run", "--arch", "resnet18", "--model.width", "8", "--model.depth", "none", "--model.heads", "none",
        "--optim.name", optimiser, "--steps", "2", "--checkpoint-every", "1",
    )  # fmt: skip
    before, after = weights(run, 1), weights(run, 2)
    assert largest_gap(before, after) > 0
    out = load_tower(run)(torch.randn(1, 3, 64, 64))
    assert out.cls is None and out.patches.shape == (1, 2, 2, 64) and out.pooled.shape == (1, 64)


def test_init_from_starts_with_those_weights(pretrain) -> None:
    first = pretrain("first", "--steps", "2", "--checkpoint-every", "1")
    source = first / "checkpoints/step-2/student"
    second = pretrain(
        "second", "--steps", "1", "--optim.base-lr", "0", "--optim.min-lr", "0", "--init-from", str(source)
    )
    start, end = load_tower(source).model.state_dict(), load_tower(second).model.state_dict()
    assert all(torch.equal(start[k], end[k]) for k in start)
    with pytest.raises(ConfigError, match="Dinov2WithRegistersModel"):
        pretrain("third", "--steps", "1", "--arch", "vits8_reg4", "--init-from", str(source))
    assert not (first.parent / "third").exists()


@pytest.mark.parametrize("arch", ["vitt8", "vits8_reg4"])
def test_init_from_weights_of_another_size(pretrain, arch: str) -> None:
    """The position table is resized once, as the class does it at every call: the tower says what it said before."""
    first = pretrain("first", "--arch", arch, "--steps", "1")
    source = first / "checkpoints/step-1/student"
    still = ("--arch", arch, "--steps", "1", "--optim.base-lr", "0", "--optim.min-lr", "0")
    second = pretrain("second", *still, "--init-from", str(source), "--crops.global-size", "48")
    assert load_tower(second).model.config.image_size == 48
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(load_tower(second)(x).patches, load_tower(source)(x).patches, atol=1e-5)


def test_heads_learn_first_on_a_backbone_that_is_good(pretrain) -> None:
    """New heads wreck the features that they are put on: the backbone waits, without decay, for two of four steps."""
    run = pretrain(
        "run", "--steps", "4", "--checkpoint-every", "2", "--head.freeze-epochs", "0", "--optim.warmup-epochs", "0",
        "--optim.freeze-backbone-epochs", "1.5", "--teacher.momentum", "0.5",
    )  # fmt: skip
    middle, end = (load_file(run / f"checkpoints/step-{step}/student/model.safetensors") for step in (2, 4))
    teacher = load_file(run / "checkpoints/step-2/teacher/model.safetensors")
    assert all(torch.equal(middle[k], teacher[k]) for k in middle)  # it has not moved, so neither has its average
    assert any(not torch.equal(middle[k], end[k]) for k in middle)
    stepped = {name.partition(".")[0] for name in load_file(run / "checkpoints/step-2/optimizer.safetensors")}
    assert stepped == {"head"}


def test_a_step_with_nothing_finite_changes_nothing(pretrain, monkeypatch) -> None:
    """A NaN anywhere: no optimiser step, no centre, no teacher; the images are named; the run goes on.

    No checkpoint is written at a bad step, where a run could only go back to the same trouble, but at the end.
    """
    from dino_tower.pretrain import train
    from dino_tower.pretrain.loading.pixels import Normalise

    calls = 0

    class Poisoned(Normalise):
        def __call__(self, view):
            nonlocal calls
            calls += 1
            pixels = super().__call__(view)
            return pixels * float("nan") if calls == 2 * 4 + 1 else pixels  # one view of the third step

    monkeypatch.setattr(train, "Normalise", Poisoned)
    flags = ("--checkpoint-every", "1", "--faults.keep-last", "9")
    run = pretrain("run", "--steps", "4", *flags)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    bad = [row for row in rows if row["kind"] == "bad_step"]
    assert [row["step"] for row in bad] == [2] and len(bad[0]["ids"]) == 8 and bad[0]["losses"] == ["nan"]
    assert [p.name for p in checkpoints(run / "checkpoints")] == ["step-1", "step-2", "step-4"]
    assert largest_gap(weights(run, 2), weights(run, 4)) > 0
    calls = 0
    last = pretrain("last", "--steps", "3", *flags)
    assert largest_gap(weights(last, 2), weights(last, 3)) == 0


def test_old_checkpoints_are_pruned(pretrain) -> None:
    run = pretrain(
        "run", "--steps", "5", "--checkpoint-every", "1", "--faults.keep-last", "1", "--faults.keep-every", "2"
    )
    assert [p.name for p in checkpoints(run / "checkpoints")] == ["step-2", "step-4", "step-5"]
