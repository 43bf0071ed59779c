"""Sinkhorn-Knopp: targets that use every prototype equally often, in the log domain.

B rows of all processes together, K prototypes. Reference: dinov2/loss/dino_clstoken_loss.py::sinkhorn_knopp_teacher
(SwAV, arXiv 2006.09882, section 3.1; DINOv2, section 4).

The published form works on exp(logits / temperature) and overflows where that quotient passes 88. With M the quotient,
its result is exp(M_bk + u_b + v_k) for scaling vectors u and v that make columns and rows sum to 1 in turn:

    v_k = -logsumexp_b (M_bk + u_b),   u_b = -logsumexp_k (M_bk + v_k)

Only the first round needs logarithms. With E_bk = exp(M_bk - max_b M_bk), at most 1 and 1 somewhere in each column,
exp(v_k) is 1 / sum_b E_bk but for the maximum, and all other rounds are products of E with vectors. Where a row lies so
far below the others in every column that it vanishes from E, E is formed again with the largest entry of each row taken
off M + v: rows then have a 1 and each column an entry of at least 1 / (B K), so that nothing overflows or vanishes.
Constant factors cancel; the mean of the columns' sums stands for the published B / K, so that nobody need know how many
rows others have.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

CACHED = 2**17  # numbers of a block that stays in a core's cache
SMALLEST = 1e-20  # share of a row in E below which its entries would lose digits to underflow


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Teacher logits [b, K] of this process to probabilities [b, K]: rows sum to 1, columns of all rows to about B / K.

    Rows may be unlike in number on each process, also none; all must call. fp32, of fp64 logits fp64.
    Raises ValueError for less than one iteration.
    """
    if iterations < 1:
        raise ValueError(f"{iterations} Sinkhorn iterations: at least 1 is needed, 3 are published")
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    with torch.autocast(logits.device.type, enabled=False):
        e, own, sums = _exponentials(logits, temperature, kind)
        top = own.clone()
        if _distributed():
            dist.all_reduce(top, dist.ReduceOp.MAX)
        factor = (own - top).exp()
        sums = _sum_over_processes(sums * factor)
        column = factor / sums
        rows = e @ column
        if len(e) and rows.min() < SMALLEST:
            e = logits.to(kind) / temperature - (top + sums.log())
            e.sub_(e.amax(1, keepdim=True)).exp_()
            column, rows = torch.ones_like(column), e.sum(1)
        row = 1 / rows
        for _ in range(iterations - 1):
            used = _sum_over_processes(column * (e.T @ row))
            column = column * (used.mean() / used)
            row = 1 / (e @ column)
        for part, scale in zip(e.split(_size(e), dim=1), column.split(_size(e)), strict=True):
            part.mul_(scale).mul_(row[:, None])
        return e


def _exponentials(logits: Tensor, temperature: float, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """E = exp(M - max_b M) [b, K], the maxima [K] (-inf from a process without rows) and E's column sums [K]."""
    e = torch.empty(logits.shape, dtype=kind, device=logits.device)
    top, sums = e.new_full(e.shape[1:], -torch.inf), e.new_zeros(e.shape[1:])
    size = _size(e)
    for start in range(0, e.shape[1] if len(e) else 0, size):
        here = slice(start, start + size)
        part, source = e[:, here], logits[:, here]
        torch.div(source if source.dtype == kind else source.to(kind), temperature, out=part)
        torch.amax(part, 0, out=top[here])
        torch.sum(part.sub_(top[here]).exp_(), 0, out=sums[here])
    return e, top, sums


def _size(e: Tensor) -> int:
    """Columns that are worked on at a time."""
    return e.shape[1] if e.is_cuda else max(1, CACHED // max(1, len(e)))


def _sum_over_processes(x: Tensor) -> Tensor:
    if _distributed():
        dist.all_reduce(x)
    return x


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


class SinkhornTargets(nn.Module):
    """In the place of a Centre: targets from the rows of this step alone. It has no state."""

    def targets(self, teacher: Tensor, temperature: float) -> Tensor:
        """Teacher logits [..., K] to probabilities of the same shape, over all rows of all processes."""
        return sinkhorn(teacher.flatten(0, -2), temperature).view_as(teacher)

    def observe(self, teacher: Tensor) -> None:
        """Nothing is kept."""

    def observe_mean(self, mean: Tensor, rows: int) -> None:
        """Nothing is kept."""

    def commit(self) -> None:
        """Nothing moves."""

    def forget(self) -> None:
        """Nothing is kept."""
