"""The loss that never stores its logits is the published one, value and gradients, chunked or not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dino_tower.pretrain.algorithms import losses
from dino_tower.pretrain.algorithms.losses import dino_loss


def published(z: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """The loss as it is published: every pair of different views, one of them global."""
    log_p = (F.linear(z, weight) / temperature).log_softmax(-1)
    pairs = [-(targets[t] * log_p[v]).sum(-1).mean() for t in range(2) for v in range(len(z)) if v != t]
    return torch.stack(pairs).mean()


def inputs(views: int, kind: torch.dtype = torch.float32, batch: int = 3, width: int = 8, prototypes: int = 50):
    g = torch.Generator().manual_seed(views)
    z = F.normalize(torch.randn(views, batch, width, generator=g), dim=-1).to(kind).requires_grad_()
    weight = F.normalize(torch.randn(prototypes, width, generator=g), dim=-1).to(kind).requires_grad_()
    targets = (torch.randn(2, batch, prototypes, generator=g) / 0.3).softmax(-1).to(kind)
    return z, weight, targets


@pytest.mark.parametrize("views", [2, 3, 10])
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_value_and_gradients_are_the_published_ones(monkeypatch, views: int, chunk: int) -> None:
    z, weight, targets = inputs(views)
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk * views * 3)
    want = published(z, weight, targets)
    want_z, want_w = torch.autograd.grad(3 * want, (z, weight))
    got = dino_loss(z, weight, targets)
    got_z, got_w = torch.autograd.grad(3 * got, (z, weight))
    assert abs(got - want) <= 1e-6 * want
    assert (got_z - want_z).abs().max() <= 1e-6 * want_z.abs().max()
    assert (got_w - want_w).abs().max() <= 1e-6 * want_w.abs().max()


def test_large_logits_stay_finite() -> None:
    z, weight, targets = inputs(4)
    loss = dino_loss(z * 300, weight, targets)  # logits up to 3,000
    grad_z, grad_w = torch.autograd.grad(loss, (z, weight))
    assert torch.isfinite(loss) and torch.isfinite(grad_z).all() and torch.isfinite(grad_w).all()


def test_a_frozen_weight_gets_no_gradient() -> None:
    z, weight, targets = inputs(4)
    dino_loss(z, weight.detach(), targets).backward()
    assert weight.grad is None and z.grad.abs().max() > 0


def test_bf16_autocast_is_near() -> None:
    z, weight, targets = inputs(6, prototypes=400)
    want = dino_loss(z, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        got = dino_loss(z, weight, targets)
    assert got.dtype == torch.float32 and abs(got - want) < 2**-7 * want
    got.backward()
    assert z.grad.dtype == torch.float32 and weight.grad.dtype == torch.float32


@pytest.mark.parametrize("batch", [1, 3])  # 4 rows fit into the gradient of a prototype of 8 numbers, 12 do not
@pytest.mark.parametrize("chunk", [7, 10_000])
def test_weight_normalisation_inside_is_that_of_torch_outside(monkeypatch, batch: int, chunk: int) -> None:
    z, _, targets = inputs(4, batch=batch)
    v = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    g = (0.5 + torch.rand(50, 1, generator=torch.Generator().manual_seed(2))).requires_grad_()
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk * 4 * batch)
    want = published(z, torch._weight_norm(v, g, 0), targets)
    got = dino_loss(z, v, targets, gain=g)
    assert abs(got - want) <= 1e-6 * want
    pairs = zip(torch.autograd.grad(got, (z, v, g)), torch.autograd.grad(want, (z, v, g)), strict=True)
    for gradient, true in pairs:
        assert (gradient - true).abs().max() <= 1e-6 * true.abs().max()


def test_a_second_backward_is_the_first_again() -> None:
    """The first hands the memory of what was kept on as the gradient: the second has to compute it anew."""
    z, weight, targets = inputs(2)
    loss = dino_loss(z, weight, targets, gain=torch.ones(50, 1))
    first = [gradient.clone() for gradient in torch.autograd.grad(loss, (z, weight), retain_graph=True)]
    for again, before in zip(torch.autograd.grad(loss, (z, weight)), first, strict=True):
        assert (again - before).abs().max() <= 1e-6 * before.abs().max()


def test_the_gradient_is_the_only_large_tensor(monkeypatch) -> None:
    """No normalised copy of the weight, no logits of all views: at most a quarter more than the gradient itself."""
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 30 * 64)
    z, weight, targets = inputs(10, width=32, prototypes=4096)
    gain = torch.ones(4096, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        dino_loss(z, weight, targets, gain=gain).backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert weight.nbytes < peak < 1.25 * weight.nbytes
