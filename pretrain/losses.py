"""The loss of DINO together with the last layer, so that the logits of all views are never stored.

V views (the two global ones first) of B images, d bottleneck, K prototypes, W [K, d] their rows, z [V, B, d] the
normalised outputs of the head's MLP, s = z W' / temperature. With T_v the sum of the targets that view v is compared
with and n_v their number (1 for a global view, 2 for a local one),

    L = sum_v sum_b (n_v logsumexp(s_vb) - <T_vb, s_vb>) / (B (2 V - 2))
    <T, W z> = <T W, z>                       so the targets never meet the logits
    dL/ds = (n softmax(s) - T) / (B (2 V - 2))

K is cut into chunks: forward keeps one running logsumexp a row, backward computes each chunk's logits again. It is the
published double loop over pairs of views (main_dino.py::DINOLoss; DINO, section 3.1) at a fraction of its memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 4 * 2**20  # logits alive at a time: 16 MiB, which stays near the cache of a CPU


def dino_loss(z: Tensor, weight: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """The scalar loss. z [V, B, d], weight [K, d], targets [2, B, K] probabilities without gradient.

    Under autocast the matrix products run in its precision; logsumexp is fp32, the last sums are fp64. A weight that
    needs no gradient costs none.
    """
    return _DinoLoss.apply(z, weight, targets, temperature)


class _DinoLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
        views, batch, _ = z.shape
        kind = torch.get_autocast_dtype(z.device.type) if torch.is_autocast_enabled(z.device.type) else z.dtype
        rows, w, t = z.flatten(0, 1).to(kind), weight.to(kind), targets.to(kind)
        chunk = max(1, CHUNK_LOGITS // len(rows))
        top = rows.new_full((len(rows),), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(top)
        for part in w.split(chunk):
            s = (rows @ part.T).float() / temperature
            higher = torch.maximum(top, s.amax(1))
            total = total * (top - higher).exp() + s.sub_(higher[:, None]).exp_().sum(1)
            top = higher
        # both terms are of the size of the logits and the loss is what is left between them: added up in fp64
        normaliser = (top.double() + total.double().log()).view(views, batch)
        drawn = (t.flatten(0, 1) @ w).float().view(2, batch, -1)  # T W, for each of the teacher's views
        pull = _by_view(drawn, views)
        agreement = (pull.double() * z.double()).sum() / temperature
        counts = _counts(views, z.device)
        scale = 1 / (batch * (2 * views - 2))
        ctx.save_for_backward(rows, w, t, top, total, pull)
        ctx.temperature, ctx.scale, ctx.kinds = temperature, scale, (z.dtype, weight.dtype)
        return (((counts * normaliser.sum(1)).sum() - agreement) * scale).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, w, t, top, total, pull = ctx.saved_tensors
        views, batch, _ = pull.shape
        factor = grad * ctx.scale / ctx.temperature
        counts = (_counts(views, rows.device)[:, None] * factor).expand(views, batch).reshape(-1, 1)
        share = (
            counts / total[:, None]
        )  # the largest logit, not the logsumexp, is taken off below: it subtracts exactly
        dz = torch.zeros_like(pull).flatten(0, 1)
        dw = torch.empty_like(w, dtype=ctx.kinds[1]) if ctx.needs_input_grad[1] else None
        # what the target of each of the teacher's views is compared with, summed: the other global view and all locals
        z = rows.view(views, batch, -1)
        local = z[2:].float().sum(0)
        met = torch.stack([z[1].float() + local, z[0].float() + local]).flatten(0, 1) * factor
        chunk = max(1, CHUNK_LOGITS // len(rows))
        for start in range(0, len(w), chunk):
            part = w[start : start + chunk]
            s = (rows @ part.T).float().div_(ctx.temperature).sub_(top[:, None])
            p = s.exp_().mul_(share).to(rows.dtype)
            dz += (p @ part).float()
            if dw is not None:
                pulled = t.flatten(0, 1)[:, start : start + chunk].T @ met.to(t.dtype)
                dw[start : start + chunk] = (p.T @ rows).float() - pulled.float()
        dz = dz.view(views, batch, -1) - pull * factor
        return dz.to(ctx.kinds[0]), dw, None, None


def _by_view(pairs: Tensor, views: int) -> Tensor:
    """What each student view is compared with, from the teacher's two views [2, B, d] to [V, B, d]."""
    both = (pairs[0] + pairs[1]).expand(views - 2, *pairs.shape[1:])
    return torch.cat([pairs[1:2], pairs[0:1], both])


def _counts(views: int, device: torch.device) -> Tensor:
    return torch.tensor([1.0, 1.0] + [2.0] * (views - 2), device=device)
