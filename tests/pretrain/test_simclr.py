"""SimCLR's term against equation 1 of the paper, pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.objectives.control_settings import SimclrConfig
from dino_tower.pretrain.objectives.objective import make_objective
from dino_tower.pretrain.objectives.simclr import Simclr, nt_xent
from dino_tower.pretrain.objectives.term import Inputs, Rates
from dino_tower.pretrain.settings import Config, CropsConfig, ModelConfig

PICTURES = 5


def by_hand(z: torch.Tensor, temperature: float) -> tuple[float, float]:
    """Algorithm 1 with loops: z_2k-1 and z_2k are the two views of picture k. The loss, and how often j is nearest."""
    rows = F.normalize(z.double(), dim=1).tolist()
    pairs = [(k, k + PICTURES) for k in range(PICTURES)] + [(k + PICTURES, k) for k in range(PICTURES)]
    total, right = 0.0, 0
    for i, j in pairs:
        similar = {k: sum(a * b for a, b in zip(rows[i], rows[k], strict=True)) for k in range(2 * PICTURES) if k != i}
        total -= math.log(math.exp(similar[j] / temperature) / sum(math.exp(s / temperature) for s in similar.values()))
        right += max(similar, key=similar.__getitem__) == j
    return total / (2 * PICTURES), right / (2 * PICTURES)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_equation_1(temperature: float) -> None:
    z = torch.randn(2 * PICTURES, 6, generator=torch.Generator().manual_seed(0))
    z[PICTURES:] += z[:PICTURES]
    loss, right = nt_xent(F.normalize(z, dim=1), temperature)
    want, share = by_hand(z, temperature)
    assert loss.item() == pytest.approx(want, rel=1e-5) and right.item() == pytest.approx(share)
    assert 0 < share < 1
    same, _ = nt_xent(torch.eye(PICTURES).repeat(2, 1), 1e-3)  # each picture in a direction of its own
    assert same.item() == pytest.approx(0, abs=1e-6)
    one, _ = nt_xent(F.normalize(torch.ones(2 * PICTURES, 6), dim=1), 0.1)
    assert one.item() == pytest.approx(math.log(2 * PICTURES - 1), rel=1e-5)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_term_projects_both_views_together(batch_norm: bool) -> None:
    config = Config(
        arch="vitt8", objective="simclr", crops=CropsConfig(global_size=16, locals=0),
        model=ModelConfig(width=16, depth=1, heads=2, drop_path=0.0),
        simclr=SimclrConfig(hidden=12, outputs=6, batch_norm=batch_norm),
    )  # fmt: skip
    student, teacher = make_networks(config, torch.device("cpu"), world=1)
    assert "simclr" not in teacher.parts()
    g = torch.Generator().manual_seed(0)
    given = Inputs([torch.randn(PICTURES, 3, 16, 16, generator=g) for _ in range(2)], torch.zeros(PICTURES))
    seen = student.see(given.views)
    first, norm, _, last, end = student.part("simclr")
    hidden = first(seen.pooled.flatten(0, 1))
    if batch_norm:
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + norm.eps).sqrt()
    z = last(hidden.relu())
    if batch_norm:
        assert first.bias is None and last.bias is None and not end.bias.requires_grad
        z = (z - z.mean(0)) / (z.var(0, correction=0) + end.eps).sqrt()
    term = Simclr(config)
    loss = term.loss(student, seen, given, None, Rates(0.04))
    want, share = by_hand(z, 0.1)
    assert loss.item() == pytest.approx(want, rel=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    row = term.health(None, loss)
    assert row["simclr_accuracy"] == pytest.approx(share)
    assert row["simclr_spread"] == pytest.approx(1 - F.normalize(z, dim=1).mean(0).norm().item() ** 2, abs=1e-4)


def test_all_pictures_alike_ring_an_alarm() -> None:
    (rule,) = make_objective(Config(objective="simclr")).rules().values()
    assert rule.sign({"simclr_spread": 0.0}) and not rule.sign({"simclr_spread": 0.5})
