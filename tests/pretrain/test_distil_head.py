"""A student learns the prototypes of a frozen run's head, and the main job keeps its promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dino_tower import export_tower, load_tower
from dino_tower.checkpoint import load_tensors
from dino_tower.pretrain.algorithms.heads import DinoHead, Prototypes
from dino_tower.pretrain.network.student_teacher import Network
from dino_tower.pretrain.objectives.distil import suited
from dino_tower.pretrain.objectives.distil_head import DistilHead, frozen
from dino_tower.pretrain.objectives.settings import DistilConfig
from dino_tower.pretrain.objectives.term import Inputs, Rates, Seen
from dino_tower.pretrain.settings import Config, CropsConfig, HeadConfig
from dino_tower.tokens import tokens

FLAGS = ("--objective", "distil_head", "--model.drop-path", "0", "--optim.warmup-epochs", "0", "--model.width", "16")
KINDS = {
    "shared": ("--head.batch-norm", "true"),
    "mlp": ("--ibot.head", "mlp", "--ibot.prototypes", "48", "--head.batch-norm", "false"),
    "separate": ("--ibot.head", "separate", "--ibot.prototypes", "48", "--ibot.bottleneck", "8", "--head.weight-norm",
                 "false", "--head.norm-last-layer", "false"),
}  # fmt: skip


def rows(run: Path) -> list[dict]:
    return [row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if row["kind"] == "step"]


@pytest.fixture
def teacher(pretrain) -> str:
    """A run with iBOT's shared head, and its two networks unlike."""
    flags = ("--objective", "ibot", "--teacher.momentum", "0.5", "--head.freeze-epochs", "0", "--optim.base-lr", "1e-2")
    return str(pretrain("teacher", *flags, "--steps", "3"))


def test_a_student_comes_nearer_to_the_head_and_resumes_exactly(pretrain, teacher: str) -> None:
    flags = (*FLAGS, "--distil.teachers", f"{teacher}@teacher", "--steps", "24", "--checkpoint-every", "20")
    whole = pretrain("whole", *flags, "--optim.base-lr", "1e-2", "--head.freeze-epochs", "0")
    found = [row["loss"] - row["distil_entropy"] for row in rows(whole)]
    assert sum(found[-4:]) < sum(found[:4]) - 0.04
    cut = whole.with_name("cut")
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-24")
    pretrain("cut", *flags, "--optim.base-lr", "1e-2", "--head.freeze-epochs", "0", "--resume")
    for part in ("student/model", "teacher/model", "heads", "optimizer"):
        a, b = (load_file(run / f"checkpoints/step-24/{part}.safetensors") for run in (whole, cut))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), part
    heads = load_file(whole / "checkpoints/step-24/heads.safetensors")
    assert {k.partition(".")[0] for k in heads} == {"student", "teacher", "distil_centre", "distil_patch_centre"}
    assert load_tower(f"{whole}@teacher")(torch.randn(1, 3, 32, 32)).patches.shape == (1, 4, 4, 16)  # the spare copy


def test_two_processes_equal_one_with_the_joint_batch(pretrain, lives, tiny, tmp_path: Path, teacher: str) -> None:
    flags = (*FLAGS, "--distil.teachers", teacher, "--steps", "3", "--optim.base-lr", "1e-4")
    flags += ("--head.batch-norm", "false")
    one = pretrain("one", *flags)
    words = ["pretrain", *tiny(*flags, "--batch-size", "4"), "--output", str(tmp_path / "two")]
    ranks = lives.start_ranks(words, 2)
    assert [lives.wait(rank) for rank in ranks] == [0, 0], lives.said(ranks[0])
    pairs = list(zip(rows(one), rows(tmp_path / "two"), strict=True))
    assert len(pairs) == 3 and all(abs(a["loss"] - b["loss"]) <= 1e-6 * a["loss"] for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_the_one_that_the_run_was_trained_with(pretrain, tmp_path: Path, kind: str) -> None:
    """Of every kind, from the run itself as from its export with heads."""
    run = pretrain("run", "--objective", "ibot", *KINDS[kind], "--steps", "2")
    teacher = frozen(str(run))
    assert teacher.kind == kind and teacher.prototypes() == 64
    assert teacher.prototypes(patches=True) == (64 if kind == "shared" else 48)
    stored = load_tensors(run / "checkpoints/step-2/heads.safetensors")
    parts = {"shared": ["head"], "mlp": ["head", "patch_prototypes"], "separate": ["head", "patch_head"]}[kind]
    assert list(teacher.heads) == parts
    for name in parts:
        own = teacher.heads[name].state_dict()
        prefix = "student." if name == "head" else f"student.{name}."
        assert own and all(torch.equal(own[key], stored[prefix + key]) for key in own)
    assert export_tower(run, tmp_path / "out", format="heads") == 0
    again = frozen(str(tmp_path / "out"))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.heads["head"](x), teacher.heads["head"](x))
    student = pretrain("student", *FLAGS, "--distil.teachers", str(tmp_path / "out"), "--steps", "1")
    heads = load_file(student / "checkpoints/step-1/heads.safetensors")
    assert ("student.patch_head.last_layer.weight_v" in heads) == (kind == "separate")


def test_the_loss_by_hand(teacher: str) -> None:
    """Each view against the other global view's target, and every patch against its own."""
    config = Config(
        objective="distil_head",
        crops=CropsConfig(global_size=32),
        head=HeadConfig(prototypes=64, hidden=32, bottleneck=16),
        distil=DistilConfig((teacher,), patches=0.5),
    )
    term, g = DistilHead(config), torch.Generator().manual_seed(0)
    stored = load_tensors(Path(teacher) / "checkpoints/step-3/heads.safetensors")
    assert torch.equal(term.distil_centre.centre, stored["centre.centre"])
    assert torch.equal(term.distil_patch_centre.centre, stored["patch_centre.centre"])
    tower, head = load_tower(teacher), frozen(teacher).heads["head"]
    views = [torch.rand(2, 3, 32, 32, generator=g) for _ in range(2)] + [torch.rand(2, 3, 16, 16, generator=g)]
    inputs, rates = Inputs(views, torch.zeros(2)), Rates(0.05)
    student = Network(tower.model, head=DinoHead(16, 64, 32, 16))
    cls, patches = term.targets(student, None, inputs, rates)
    seen = Seen(torch.randn(3, 2, 16, generator=g), torch.randn(2, 2, 4, 4, 16, generator=g))
    got = term.loss(student, seen, inputs, (cls, patches), rates)

    out = tokens(tower.model, suited(tower, torch.cat(views[:2]), 4))
    want = ((head(out.cls) - stored["centre.centre"]) / 0.05).softmax(-1)
    of_patches = ((head(out.patches.flatten(0, 2)) - stored["patch_centre.centre"]) / 0.05).softmax(-1)
    assert torch.allclose(cls.flatten(0, 1), want, atol=1e-6) and torch.allclose(patches, of_patches, atol=1e-6)
    said = (student.part("head")(seen.pooled.flatten(0, 1)) / 0.1).log_softmax(-1).unflatten(0, (3, 2))
    terms = [-(want.unflatten(0, (2, 2))[t] * said[v]).sum(-1).mean() for t in range(2) for v in range(3) if v != t]
    answers = (student.part("head")(seen.patches.flatten(0, 3)) / 0.1).log_softmax(-1)
    loss = torch.stack(terms).mean() - 0.5 * (of_patches * answers).sum(-1).mean()
    assert torch.allclose(got, loss, rtol=1e-5)
    term.commit()
    moved = 0.9 * stored["centre.centre"] + 0.1 * head(out.cls).mean(0)
    assert torch.allclose(term.distil_centre.centre, moved, atol=1e-6)


def test_prototypes_without_weight_norm_are_a_linear_layer() -> None:
    layer, x = Prototypes(4, 6, weight_norm=False), torch.randn(3, 4)
    assert torch.equal(layer(x), F.linear(x, layer.weight_v)) and list(layer.state_dict()) == ["weight_v"]
    normed = Prototypes(4, 6)
    unit = F.normalize(normed.weight_v, dim=1)
    assert torch.allclose(normed(x), F.linear(x, unit), atol=1e-6)
