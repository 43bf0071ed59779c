"""A tower learns from frozen ones of other kinds, patch sizes and widths, and keeps the promises of the main job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dino_tower import load_tower
from dino_tower.pretrain.objectives.distil import Standard, suited
from dino_tower.pretrain.objectives.gram import Gram
from dino_tower.pretrain.objectives.settings import GramConfig, TermsConfig
from dino_tower.pretrain.objectives.term import Inputs, Rates, Seen
from dino_tower.pretrain.settings import Config, CropsConfig
from dino_tower.pretrain.student_teacher import Network
from dino_tower.tokens import tokens

FLAGS = ("--objective", "distil", "--crops.locals", "0", "--distil.hidden", "32", "--optim.warmup-epochs", "0")


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step}"
    return {
        f"{file.relative_to(folder)}/{k}": v
        for file in folder.rglob("*.safetensors")
        for k, v in load_file(file).items()
    }


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "step"]


@pytest.fixture
def teachers(pretrain) -> list[str]:
    """A trained tower with patches of 8 pixels, and an untrained one of another class with patches of 16."""
    run = pretrain("first", "--steps", "2", "--monitor.tracker", "none")
    return [str(run), "random:vitt16_siglip"]


def test_a_student_of_two_unlike_towers(pretrain, teachers: list[str]) -> None:
    """It learns, goes on as if it had never stopped, and the towers are not in its checkpoint."""
    flags = (*FLAGS, "--distil.teachers", *teachers, "--steps", "20", "--checkpoint-every", "16")
    whole = pretrain("whole", *flags)
    found = losses(whole)
    assert found[0] == 0  # the first step only measures the towers
    assert sum(found[-5:]) < 0.9 * sum(found[1:6])
    cut = whole.with_name("cut")
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-20")
    pretrain("cut", *flags, "--resume")
    a, b = weights(whole, 20), weights(cut, 20)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    heads = {k.split("/")[1] for k in a if k.startswith("heads")}
    assert {k.split(".")[0] for k in heads} == {"student", "distil_statistics"}  # no teacher's adapter
    assert a["heads.safetensors/distil_statistics.0.mean"].shape == (32,)
    assert a["heads.safetensors/distil_statistics.3.mean"].shape == (192,)
    x = torch.randn(1, 3, 32, 32)
    assert load_tower(whole)(x).patches.shape == (1, 4, 4, 32)


def test_two_processes_equal_one_with_the_joint_batch(pretrain, lives, tiny, tmp_path: Path, teachers) -> None:
    flags = (*FLAGS, "--distil.teachers", teachers[0], "--steps", "4", "--optim.base-lr", "1e-4")
    one = pretrain("one", *flags)
    words = ["pretrain", *tiny(*flags, "--batch-size", "4"), "--output", str(tmp_path / "two")]
    ranks = lives.start_ranks(words, 2)
    assert [lives.wait(rank) for rank in ranks] == [0, 0], lives.said(ranks[0])
    pairs = list(zip(losses(one), losses(tmp_path / "two"), strict=True))
    assert len(pairs) == 4 and all(abs(a - b) <= 1e-5 * max(a, 1) for a, b in pairs)


def test_an_anchor_lies_where_the_run_starts(pretrain, teachers: list[str]) -> None:
    """Without an MLP between them, a student with the tower's own weights has nothing to change; beside DINO's term."""
    source = f"{teachers[0]}/checkpoints/step-2/student"
    flags = ("--terms.distil", "1", "--distil.teachers", source, "--distil.hidden", "0", "--init-from", source)
    run = pretrain("run", *flags, "--steps", "3", "--optim.base-lr", "0", "--optim.min-lr", "0")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = [row["distil_loss"] for row in rows if row["kind"] == "step"]
    assert max(found) < 1e-8
    moved = pretrain("moved", *flags, "--steps", "3")
    rows = [json.loads(line) for line in (moved / "log.jsonl").read_text().splitlines()]
    assert [row["distil_loss"] for row in rows if row["kind"] == "step"][-1] > 1e-5


def test_towers_are_compared_at_mean_zero_and_variance_one() -> None:
    g = torch.Generator().manual_seed(0)
    statistics, scale = Standard(6), torch.tensor([1, 2, 3, 4, 5, 30.0])
    rows = torch.randn(400, 6, generator=g) * scale + 100
    for part in rows.view(4, 2, 50, 6):
        statistics.observe(part)
    statistics.commit()
    assert torch.allclose(statistics.mean, rows.mean(0), rtol=1e-5)
    assert torch.allclose(statistics.variance, rows.var(0, correction=0).mean(), rtol=1e-4)
    found = statistics(rows)
    assert found.mean(0).abs().max() < 1e-4 and abs(found.var(0, correction=0).mean() - 1) < 1e-4
    before = statistics.mean.clone()
    statistics.forget()
    statistics.observe(rows + 8)
    statistics.commit()  # the second step counts as much as the first
    assert torch.allclose(statistics.mean, before + 4, rtol=1e-5)


def test_a_tower_sees_the_picture_as_it_was_trained_to(teachers: list[str]) -> None:
    """Its own normalisation, and the size at which its patches lie on the student's grid."""
    first, other = map(load_tower, teachers)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = torch.full((1, 3, 1, 1), 0.3), torch.full((1, 3, 1, 1), 0.7)
    inputs = Inputs([(pixels - mean) / std], torch.zeros(2), mean=mean, std=std)
    assert torch.allclose(inputs.unnormalised(inputs.views[0]), pixels, atol=1e-6)
    own = (pixels - torch.tensor(first.processor.image_mean).view(1, 3, 1, 1)) / torch.tensor(
        first.processor.image_std
    ).view(1, 3, 1, 1)
    assert torch.allclose(suited(first, pixels, 4), own, atol=1e-6)
    assert suited(other, pixels, 4).shape == (2, 3, 64, 64)
    assert tokens(other.model, suited(other, pixels, 4)).patches.shape[1:3] == (4, 4)


def test_gram_anchoring_by_hand(teachers: list[str]) -> None:
    """Pairs of patches of one view, at the tower's resolution, and nothing to learn for the tower itself."""
    config = Config(
        objective="dino",
        crops=CropsConfig(global_size=32),
        gram=GramConfig(teachers[0], 1.0),
        terms=TermsConfig(gram=2.0),
    )
    tower, term, g = load_tower(teachers[0]), Gram(config), torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32, generator=g)
    inputs = Inputs([pixels, pixels.flip(0)], torch.zeros(2))
    network = Network(tower.model)
    want = term.targets(network, None, inputs, Rates(0.04))
    patches = tokens(tower.model, suited(tower, pixels, 4)).patches.flatten(1, 2)
    assert want.shape == (4, 16, 16) and want.diagonal(dim1=1, dim2=2).sub(1).abs().max() < 1e-5
    cosine = torch.nn.functional.cosine_similarity(patches[1, 3], patches[1, 9], dim=0)
    assert abs(want[1, 3, 9] - cosine) < 1e-5
    same = Seen(patches[:, :1].unflatten(1, (1, 1)), torch.stack([patches, patches.flip(0)]).unflatten(2, (4, 4)))
    assert term.loss(network, same, inputs, want, Rates(0.04)) < 1e-10
    other = torch.randn(2, 2, 4, 4, 8, generator=g)
    x = torch.nn.functional.normalize(other.flatten(0, 1).flatten(1, 2), dim=-1)
    gap = [(x[i, m] @ x[i, n] - want[i, m, n]) ** 2 for i in range(4) for m in range(16) for n in range(16)]
    loss = term.loss(network, Seen(same.pooled, other), inputs, want, Rates(0.04))
    assert torch.allclose(loss, torch.stack(gap).mean(), rtol=1e-4)


def test_a_run_anchored_to_its_own_beginning(pretrain, teachers: list[str]) -> None:
    run = pretrain("run", "--objective", "ibot", "--terms.gram", "2", "--gram.tower", teachers[0], "--steps", "2")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (first, last) = [row for row in rows if row["kind"] == "step"]
    assert last["loss"] == pytest.approx(last["dino_loss"] + last["ibot_loss"] + 2 * last["gram_loss"], rel=1e-5)
    assert first["gram_loss"] > 0
