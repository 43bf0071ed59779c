"""A tower learns from frozen ones of other kinds, patch sizes and widths, and keeps the promises of the main job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dino_tower import load_tower
from dino_tower.pretrain.network.student_teacher import Network
from dino_tower.pretrain.objectives.distil import Standard, gap, suited
from dino_tower.pretrain.objectives.gram import Gram
from dino_tower.pretrain.objectives.settings import GramConfig, TermsConfig
from dino_tower.pretrain.objectives.term import Inputs, Rates, Seen
from dino_tower.pretrain.settings import Config, CropsConfig
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


def test_squared_errors_are_those_of_phi_s() -> None:
    """PHI-S turns features by U H' / sqrt(D), U the principal directions and H a Hadamard matrix, and divides them by
    one number: all variances are then equal. Ours is divided by it too, but not turned, which no error can tell."""
    g = torch.Generator().manual_seed(0)
    rows = (torch.randn(4000, 12, generator=g) * torch.logspace(-2, 1, 12)) @ torch.randn(12, 12, generator=g) + 7
    statistics = Standard(12)
    statistics.observe(rows)
    statistics.commit()
    ours = statistics(rows).double()
    residues = {i * i % 11 for i in range(1, 11)}  # Paley's construction
    hadamard = torch.eye(12, dtype=torch.float64)
    hadamard[0, 1:], hadamard[1:, 0] = 1, -1
    for i in range(11):
        for j in range(11):
            hadamard[i + 1, j + 1] += 0 if i == j else (1 if (i - j) % 11 in residues else -1)
    assert torch.equal(hadamard @ hadamard.T, 12 * torch.eye(12, dtype=torch.float64))
    centred = rows.double() - rows.double().mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(rows))
    phi_s = centred @ directions @ hadamard.T / variances.sum().sqrt()
    assert phi_s.mean(0).abs().max() < 1e-9
    assert (phi_s.square().mean(0) - 1).abs().max() < 1e-9  # isotropic: no feature counts more than another
    assert ours.mean(0).abs().max() < 1e-4 and ours.square().mean(0).max() > 1.5
    turned = ours @ directions @ hadamard.T / 12**0.5
    assert (turned - phi_s).abs().max() < 1e-3
    said = torch.randn(4000, 12, generator=g, dtype=torch.float64)  # whatever a student says, in the one basis or other
    same = said @ directions @ hadamard.T / 12**0.5
    assert abs((said - ours).square().mean() - (same - phi_s).square().mean()) < 1e-4


def test_every_tower_is_seen_at_the_students_resolution(pretrain, teachers: list[str], monkeypatch) -> None:
    """At each step, and in a stage at a higher one: else a student answers each tower at the size it knows it by."""
    from dino_tower.pretrain.objectives import distil

    seen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def noted(model, pixels):
        out = tokens(model, pixels)
        seen.append((type(model).__name__, tuple(pixels.shape[-2:]), tuple(out.patches.shape[1:3])))
        return out

    monkeypatch.setattr(distil, "tokens", noted)
    flags = (*FLAGS, "--distil.teachers", *teachers, "--steps", "2")
    first = pretrain("sizes", *flags)
    towers = [("Dinov2Model", (32, 32), (4, 4)), ("SiglipVisionModel", (64, 64), (4, 4))]
    assert seen == towers * 4  # the trial step looks twice
    seen.clear()
    pretrain("larger", *flags, "--stage", "hires", "--init-from", str(first), "--crops.global-size", "48")
    assert seen == [("Dinov2Model", (48, 48), (6, 6)), ("SiglipVisionModel", (96, 96), (6, 6))] * 4


def test_beside_masks_a_tower_is_compared_where_the_student_sees(pretrain, teachers: list[str]) -> None:
    """An anchor for iBOT and DINOv2, whose student cannot know what the tower says of hidden patches."""
    g = torch.Generator().manual_seed(0)
    said, patches = torch.randn(4, 2, 2, 3, generator=g), torch.randn(4, 2, 2, 3, generator=g)
    masks = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    assert torch.allclose(gap(said, patches, masks), gap(said, patches, None))
    masks[0, 1, 0, 1] = masks[1, 0, 1, 0] = masks[1, 0, 0, 0] = True
    masks[1, 1] = True  # nothing of it is seen
    each = (said - patches).square().mean(-1).flatten(1)
    want = each[0].mean() + each[1][[0, 2, 3]].mean() + each[2][[1, 3]].mean()
    assert torch.allclose(gap(said, patches, masks), want / 4)
    flags = ("--objective", "ibot", "--terms.distil", "1", "--distil.teachers", teachers[0], "--distil.hidden", "0")
    run = pretrain("run", *flags, "--init-from", teachers[0], "--init-heads", "false", "--steps", "3")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = [row["distil_loss"] for row in rows if row["kind"] == "step"]
    assert found[0] == 0 and all(0 < one < 2 for one in found[1:])


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
