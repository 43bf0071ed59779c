"""The loss of the masked patches: the student predicts, where it saw nothing, what the teacher sees there.

M masked patches of I images (the two global views of each picture are two images), d bottleneck, K prototypes. Only
patches of the same view are compared, so patch m has one target and one weight, and the loss is

    L = sum_m weight_m (logsumexp(s_m) - <t_m, s_m>),   s = z W' / temperature,   weight_m = 1 / (I n_image(m))

with n the number of masked patches of an image: the mean over its patches, then over all images, of which one without
mask counts as zero. This is ibot_pytorch.py::iBOTLoss (iBOT, section 3.2) and
dinov2/loss/ibot_patch_loss.py::forward_masked alike. Their patch centre is a `Centre` that observes all patches (iBOT)
or the masked ones (DINOv2). Logits are handled in chunks of prototypes, as losses.py does and describes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dino_tower.pretrain.algorithms.losses import LastLayer


def masked_weights(masks: Tensor) -> Tensor:
    """Masks [I, ...] bool to the weights [M], in the order in which `x[masks]` takes the patches."""
    flat = masks.flatten(1)
    each = 1 / (flat.sum(1).clamp(min=1) * len(flat))
    return each[:, None].expand_as(flat)[flat]


def patch_loss(
    z: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, temperature: float = 0.1, gain: Tensor | None = None
) -> Tensor:
    """The scalar loss. z [M, d], weight [K, d], targets [M, K] probabilities without gradient, weights [M].

    The prototypes are the rows of `weight`, or with `gain` [K, 1] gain * weight / |weight| (weight normalisation).
    Precision as in losses.py::dino_loss. Zero, with gradients of zero, where nothing is masked.
    """
    if not len(z):
        return 0.0 * sum((x.sum().float() for x in (weight, gain) if x is not None), z.sum().float())
    return _PatchLoss.apply(z, weight, gain, targets, weights, temperature)


class _PatchLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, gain: Tensor | None, targets: Tensor, weights: Tensor, temperature: float
    ) -> Tensor:
        kind = torch.get_autocast_dtype(z.device.type) if torch.is_autocast_enabled(z.device.type) else z.dtype
        layer = LastLayer((z / temperature).to(kind), weight, gain, keep=ctx.needs_input_grad[1])
        weights = weights.float()[:, None]
        top = torch.full((len(z), 1), -torch.inf, device=z.device)
        total, agreement = torch.zeros_like(top), torch.zeros_like(top, dtype=torch.float64)
        for chunk in layer.chunks():
            s = layer.scaled(layer.products(chunk), chunk)
            agreement += (s * targets[:, chunk]).sum(1, keepdim=True)
            higher = torch.maximum(top, s.amax(1, keepdim=True))
            total = total * (top - higher).exp() + s.sub_(higher).exp_().sum(1, keepdim=True)
            top = higher
        # both terms are of the size of the logits and the loss is what is left between them: added up in fp64
        normaliser = top.double() + total.double().log()
        ctx.save_for_backward(weight, gain, targets, weights, top, total)
        ctx.layer, ctx.temperature, ctx.kind = layer, temperature, z.dtype
        return ((normaliser - agreement) * weights).sum().float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, gain, targets, weights, top, total = ctx.saved_tensors
        layer: LastLayer = ctx.layer
        pulled = layer.rows * grad.to(layer.rows.dtype)
        _, needs_weight, needs_gain, *_ = ctx.needs_input_grad
        dz = torch.zeros(layer.rows.shape, device=top.device)
        dw = layer.gradient() if needs_weight else None
        dg = torch.empty_like(gain) if needs_gain else None
        for chunk in layer.chunks():
            products = layer.products_again(chunk)
            p = layer.scaled(products, chunk).sub_(top).exp_().mul_(weights / total)
            p -= targets[:, chunk] * weights
            layer.pull(chunk, p, products, pulled, grad, dz, dw, dg)
        layer.kept = None  # handed on as the gradient: a second backward has to compute the logits again
        return (dz * (grad / ctx.temperature)).to(ctx.kind), dw, dg, None, None, None
