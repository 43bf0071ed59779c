"""The loss that never stores its logits is the published one, value and gradients, chunked or not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dino_tower.pretrain import losses
from dino_tower.pretrain.losses import dino_loss


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
