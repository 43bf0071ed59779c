"""KoLeo: known answers, the gradient's direction, and memory."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dino_tower.pretrain.algorithms import koleo as module
from dino_tower.pretrain.algorithms.koleo import koleo, nearest


def points(rows: int, width: int = 8) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


def test_spread_points_have_the_known_loss() -> None:
    """Unit vectors along the axes are sqrt(2) apart; opposite points of a circle are 2 apart."""
    assert abs(koleo(torch.eye(6) * 3) + math.log(math.sqrt(2))) < 1e-6
    assert abs(koleo(torch.tensor([[1.0, 0.0], [-5.0, 0.0]])) + math.log(2)) < 1e-6


def test_a_square_is_better_than_a_crowd() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3])
    crowd = torch.stack([angles.cos(), angles.sin()], 1)
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert koleo(square) < koleo(crowd) - 2


def test_descent_spreads_a_crowd() -> None:
    x = (torch.tensor([1.0, 0, 0]) + 0.05 * points(6, 3)).requires_grad_()
    optimizer = torch.optim.SGD([x], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        koleo(x).backward()
        optimizer.step()
    unit = F.normalize(x.detach(), dim=1)
    closest = (unit[:, None] - unit).norm(dim=-1).add(10 * torch.eye(6)).min()
    assert closest > 1.0  # an octahedron has sqrt(2)


@pytest.mark.parametrize("products", [1, 50, 2**20])  # one row at a time, three, all
def test_chunks_do_not_change_anything(monkeypatch, products: int) -> None:
    x = points(17).requires_grad_()
    want = koleo(x)
    (want_grad,) = torch.autograd.grad(want, x)
    monkeypatch.setattr(module, "CHUNK_PRODUCTS", products)
    got = koleo(x)
    (grad,) = torch.autograd.grad(got, x)
    assert torch.allclose(got, want, rtol=1e-6) and torch.allclose(grad, want_grad, rtol=1e-5, atol=1e-7)
    unit = F.normalize(x.detach(), dim=1)
    assert torch.equal(nearest(unit), ((unit @ unit.T).fill_diagonal_(-1)).argmax(1))


def test_no_matrix_of_all_pairs_is_stored(monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK_PRODUCTS", 2**14)
    x = points(2048, 4).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        koleo(x).backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert 0 < peak < 2048 * 2048 * 4 / 20


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(koleo, points(5, 3).double().requires_grad_())


def test_half_precision_is_computed_in_fp32() -> None:
    x = points(9)
    with torch.autocast("cpu", torch.bfloat16):
        inside = koleo(x)
    assert torch.equal(inside, koleo(x))
    half = x.bfloat16().requires_grad_()
    loss = koleo(half)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.equal(loss, koleo(x.bfloat16().float()))
    assert half.grad is not None and torch.isfinite(half.grad).all()


def test_the_same_image_twice_is_finite() -> None:
    x = points(1).repeat(3, 1).requires_grad_()
    loss = koleo(x)
    loss.backward()
    assert torch.isfinite(loss) and x.grad is not None and torch.isfinite(x.grad).all()


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 2 or more"):
        koleo(points(1))
