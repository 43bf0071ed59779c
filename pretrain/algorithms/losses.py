"""The loss of DINO together with its last layer, so that the logits of all views are never stored.

V views (the two global ones first) of B images, R = V B rows, d bottleneck, K prototypes, W [K, d] their rows, z
[V, B, d] the normalised outputs of the head's MLP, s = z W' / temperature. With T_v the sum of the targets that view v
is compared with and n_v their number (1 for a global view, 2 for a local one),

    L = sum_v sum_b (n_v logsumexp(s_vb) - <T_vb, s_vb>) / (B (2 V - 2))
    dL/ds = (n softmax(s) - T) / (B (2 V - 2))

It is the published double loop over pairs of views (main_dino.py::DINOLoss; DINO, section 3.1) in one pass a view, over
chunks of prototypes that stay near a core. Forward takes logsumexp and agreement from a chunk's logits and leaves
them where backward will write the chunk's part of dL/dW: R numbers a prototype where d are wanted. With more rows than
fit there, or a weight without gradient, backward computes them again. Of a weight-normalised layer the rows
W = g v / |v| are not stored either, since scaling logits is cheaper, and the gradient's part along v, which the
normalisation takes away, is had from logits too: <dL/dW, v> = sum_r dL/ds_r <z_r, v> / temperature.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 5 * 2**17  # logits alive at a time, 2.5 MiB: with fewer the calls cost more than caches save
GPU_CHUNKS = 8  # times as many on a GPU, where the number of launches counts


def dino_loss(
    z: Tensor, weight: Tensor, targets: Tensor, temperature: float = 0.1, gain: Tensor | None = None
) -> Tensor:
    """The scalar loss. z [V, B, d], weight [K, d], targets [2, B, K] probabilities without gradient.

    The prototypes are the rows of `weight`, or with `gain` [K, 1] gain * weight / |weight| (weight normalisation).
    Under autocast the matrix products run in its precision; logsumexp is fp32, the last sums are fp64. What needs no
    gradient costs none.
    """
    return _DinoLoss.apply(z, weight, gain, targets, temperature)


class _DinoLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, gain: Tensor | None, targets: Tensor, temperature: float
    ) -> Tensor:
        views, batch, _ = z.shape
        kind = torch.get_autocast_dtype(z.device.type) if torch.is_autocast_enabled(z.device.type) else z.dtype
        rows = (z.flatten(0, 1) / temperature).to(kind)
        layer = LastLayer(rows, weight, gain, keep=ctx.needs_input_grad[1])
        top = torch.full((len(rows), 1), -torch.inf, device=z.device)
        total, agreement = torch.zeros_like(top), torch.zeros((), dtype=torch.float64, device=z.device)
        for chunk in layer.chunks():
            s = layer.scaled(layer.products(chunk), chunk)
            first, second, local = _by_view(s, batch)
            met = local.sum(0)
            # what the target of each of the teacher's views is compared with: the other global view and all locals
            for t, other in zip(targets[..., chunk], (second, first), strict=True):
                agreement += (met + other).mul_(t).sum(dtype=torch.float64)
            higher = torch.maximum(top, s.amax(1, keepdim=True))
            total = total * (top - higher).exp() + s.sub_(higher).exp_().sum(1, keepdim=True)
            top = higher
        # both terms are of the size of the logits and the loss is what is left between them: added up in fp64
        normaliser = (top.double() + total.double().log()).view(views, batch)
        share = 1 / (batch * (2 * views - 2))
        ctx.save_for_backward(weight, gain, targets, top, total)
        ctx.layer, ctx.temperature, ctx.share, ctx.kind = layer, temperature, share, z.dtype
        return (((_counts(views, z.device) * normaliser).sum() - agreement) * share).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, gain, targets, top, total = ctx.saved_tensors
        layer: LastLayer = ctx.layer
        batch = targets.shape[1]
        views = len(top) // batch
        share = _counts(views, top.device).expand(views, batch).reshape(-1, 1) / total
        factor = grad * ctx.share
        pulled = layer.rows * factor.to(layer.rows.dtype)
        _, needs_weight, needs_gain, *_ = ctx.needs_input_grad
        dz = torch.zeros(layer.rows.shape, device=top.device)
        dw = layer.gradient() if needs_weight else None
        dg = torch.empty_like(gain) if needs_gain else None
        for chunk in layer.chunks():
            products = layer.products_again(chunk)
            # the largest logit, not the logsumexp, is taken off: it subtracts exactly
            p = layer.scaled(products, chunk, top).exp_().mul_(share)
            first, second, local = _by_view(p, batch)
            t = targets[..., chunk]
            first -= t[1]
            second -= t[0]
            local -= t.sum(0)
            layer.pull(chunk, p, products, pulled, factor, dz, dw, dg)
        layer.kept = None  # handed on as the gradient: a second backward has to compute the logits again
        dz = (dz * (factor / ctx.temperature)).view(views, batch, -1).to(ctx.kind)
        return dz, dw, dg, None, None


class LastLayer:
    """The last layer of one step, cut into chunks of c prototypes: rows [R, d] = z / temperature, weight [K, d].

    scale, length [K, 1]: W = scale * weight with scale = gain / |weight|; None where the weight is W itself.
    kept: the memory of the weight's gradient, which holds all rows weight' until backward needs it; or None.
    """

    def __init__(self, rows: Tensor, weight: Tensor, gain: Tensor | None, keep: bool) -> None:
        self.rows, self.weight = rows, weight
        self.length, self.scale = None, None
        if gain is not None:
            self.length = weight.norm(dim=1, keepdim=True)
            self.scale = gain / self.length
        fits = len(rows) * rows.element_size() <= weight[0].nbytes
        self.kept = torch.empty_like(weight) if keep and fits else None
        self.size = max(1, CHUNK_LOGITS * (GPU_CHUNKS if rows.is_cuda else 1) // len(rows))
        self.room = torch.empty(len(rows) * min(self.size, len(weight)), device=rows.device)

    def chunks(self) -> Iterator[slice]:
        return (slice(i, min(i + self.size, len(self.weight))) for i in range(0, len(self.weight), self.size))

    def part(self, chunk: slice) -> Tensor:
        """The chunk's rows of the weight in the precision of the products."""
        return self.weight[chunk].to(self.rows.dtype)

    def products(self, chunk: slice) -> Tensor:
        """rows weight' [R, c], kept for backward if there is room."""
        if self.kept is None:
            return self.rows @ self.part(chunk).T
        return torch.mm(self.rows, self.part(chunk).T, out=self._place(self.kept[chunk]))

    def products_again(self, chunk: slice) -> Tensor:
        """The same in backward."""
        return self.products(chunk) if self.kept is None else self._place(self.kept[chunk])

    def scaled(self, products: Tensor, chunk: slice, less: Tensor | None = None) -> Tensor:
        """The logits [R, c] in the working memory, fp32, less a number for each row [R, 1]."""
        room = self.room[: products.numel()].view_as(products)
        if self.scale is None:
            return room.copy_(products) if less is None else torch.sub(products, less, out=room)
        scale = self.scale[chunk].T
        return torch.mul(products, scale, out=room) if less is None else torch.addcmul(-less, products, scale, out=room)

    def gradient(self) -> Tensor:
        """Memory for the weight's gradient: that of what is kept, chunk by chunk."""
        return torch.empty_like(self.weight) if self.kept is None else self.kept

    def pull(
        self,
        chunk: slice,
        ds: Tensor,
        products: Tensor,
        rows: Tensor,
        factor: Tensor,
        dz: Tensor,
        dw: Tensor | None,
        dg: Tensor | None,
    ) -> None:
        """Backward of a chunk's logits: ds [R, c] to its parts of dz [R, d], dw [K, d] and dg [K, 1].

        products: what products_again gave; rows: this layer's times factor, the scalar that ds is still to be
        multiplied with. What is in place of ds and products is lost.
        """
        if self.scale is None or self.length is None:
            ds = ds.to(self.rows.dtype)
            if dw is not None:
                dw[chunk] = 0
        else:
            scale, length = self.scale[chunk], self.length[chunk]
            along = products.mul_(ds).sum(0, dtype=ds.dtype)[:, None] * factor
            ds = ds.mul_(scale.T).to(self.rows.dtype)
            if dg is not None:
                dg[chunk] = along / length
            if dw is not None:  # from here on `products` is overwritten
                torch.mul(self.weight[chunk], along * scale / -(length**2), out=dw[chunk])
        if dw is not None:
            _add_product(ds.T, rows, dw[chunk])
        _add_product(ds, self.part(chunk), dz)

    def _place(self, memory: Tensor) -> Tensor:
        """The first R c numbers of a chunk's [c, d], as [R, c] in the precision of the products."""
        rows, columns = len(self.rows), len(memory)
        return memory.view(-1).view(self.rows.dtype)[: rows * columns].view(rows, columns)


def _by_view(s: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows [V B, c] of the two global views [B, c] and of the local ones [V - 2, B, c]."""
    return s[:batch], s[batch : 2 * batch], s[2 * batch :].view(len(s) // batch - 2, batch, s.shape[1])


def _add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out += a b, in the precision of a and b."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out += a @ b


def _counts(views: int, device: torch.device) -> Tensor:
    """How many targets each view is compared with [V, 1]."""
    return torch.tensor([[1.0], [1.0]] + [[2.0]] * (views - 2), device=device)
