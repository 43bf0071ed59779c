"""The loss of masked patches that never stores its logits is the plain one, value and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dino_tower.pretrain.algorithms import losses
from dino_tower.pretrain.algorithms.patch_loss import masked_weights, patch_loss


def plain(z, weight, targets, weights, temperature=0.1):
    return -((targets * (F.linear(z, weight) / temperature).log_softmax(-1)).sum(-1) * weights).sum()


def inputs(rows: int = 11, width: int = 8, prototypes: int = 50):
    g = torch.Generator().manual_seed(rows)
    z = F.normalize(torch.randn(rows, width, generator=g), dim=-1).requires_grad_()
    v = torch.randn(prototypes, width, generator=g).requires_grad_()
    gain = (0.5 + torch.rand(prototypes, 1, generator=g)).requires_grad_()
    targets = (torch.randn(rows, prototypes, generator=g) / 0.3).softmax(-1)
    return z, v, gain, targets, torch.rand(rows, generator=g)


def test_weights_are_means_over_an_image_then_over_images() -> None:
    masks = torch.zeros(4, 3, 3, dtype=torch.bool)
    masks[0, 0, :2] = True
    masks[2] = True
    want = torch.tensor([1 / 2] * 2 + [1 / 9] * 9) / 4  # two images without mask count as zero
    assert torch.allclose(masked_weights(masks), want)
    values = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        (values[masks] * masked_weights(masks)).sum(), (values[0, 0, :2].mean() + values[2].mean()) / 4
    )
    assert masked_weights(torch.zeros(4, 9, dtype=torch.bool)).shape == (0,)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 11])  # 3 rows fit into the gradient of a prototype of 8 numbers, 11 do not
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_value_and_gradients_are_the_plain_ones(monkeypatch, normalised: bool, rows: int, chunk: int) -> None:
    z, v, gain, targets, weights = inputs(rows)
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk * rows)
    leaves = (z, v, gain) if normalised else (z, v)
    want = plain(z, torch._weight_norm(v, gain, 0) if normalised else v, targets, weights)
    got = patch_loss(z, v, targets, weights, gain=gain if normalised else None)
    assert abs(got - want) <= 1e-6 * want
    pairs = zip(torch.autograd.grad(3 * got, leaves), torch.autograd.grad(3 * want, leaves), strict=True)
    for gradient, true in pairs:
        assert (gradient - true).abs().max() <= 2e-6 * true.abs().max()


def test_a_second_backward_is_the_first_again() -> None:
    z, v, gain, targets, weights = inputs(3)
    loss = patch_loss(z, v, targets, weights, gain=gain)
    first = [gradient.clone() for gradient in torch.autograd.grad(loss, (z, v, gain), retain_graph=True)]
    for again, before in zip(torch.autograd.grad(loss, (z, v, gain)), first, strict=True):
        assert (again - before).abs().max() <= 1e-6 * before.abs().max()


def test_a_frozen_weight_gets_no_gradient() -> None:
    z, v, gain, targets, weights = inputs()
    patch_loss(z, v.detach(), targets, weights, gain=gain.detach()).backward()
    assert v.grad is None and gain.grad is None and z.grad.abs().max() > 0


def test_nothing_masked_is_zero_with_gradients_of_zero() -> None:
    z, v, gain, targets, weights = inputs()
    loss = patch_loss(z[:0], v, targets[:0], weights[:0], gain=gain)
    loss.backward()
    assert loss == 0 and not z.grad.any() and not v.grad.any() and not gain.grad.any()


def test_large_logits_stay_finite() -> None:
    z, v, gain, targets, weights = inputs()
    loss = patch_loss(z * 300, v, targets, weights, gain=gain)
    grads = torch.autograd.grad(loss, (z, v, gain))
    assert torch.isfinite(loss) and all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("rows", [11, 3])
def test_bf16_autocast_is_near(rows: int) -> None:
    z, v, gain, targets, weights = inputs(rows, prototypes=400)
    want = patch_loss(z, v, targets, weights, gain=gain)
    with torch.autocast("cpu", torch.bfloat16):
        got = patch_loss(z, v, targets, weights, gain=gain)
    assert got.dtype == torch.float32 and abs(got - want) < 2**-7 * want
    got.backward()
    assert z.grad.dtype == v.grad.dtype == torch.float32


def test_the_gradient_is_the_only_large_tensor(monkeypatch) -> None:
    """No normalised copy of the weight and no logits of all patches."""
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 30 * 64)
    z, v, gain, targets, weights = inputs(30, width=32, prototypes=4096)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        patch_loss(z, v, targets, weights, gain=gain.detach()).backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert v.nbytes < peak < 1.25 * v.nbytes
