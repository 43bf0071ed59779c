"""Sinkhorn-Knopp: targets that use every prototype equally often, in the log domain.

B rows of all processes together, K prototypes. Reference: dinov2/loss/dino_clstoken_loss.py::sinkhorn_knopp_teacher
(SwAV, arXiv 2006.09882, section 3.1; DINOv2, section 4).

The published form works on exp(logits / temperature) and overflows where that quotient passes 88. With M the quotient,
its result is exp(M_bk + u_b + v_k) for scaling vectors u and v that make columns and rows sum to 1 in turn:

    v_k = -logsumexp_b (M_bk + u_b),   u_b = -logsumexp_k (M_bk + v_k)

Only the first round needs logarithms. After it P = softmax_k(M + v) has rows that sum to 1 and in every column an entry
of at least 1 / (B K), so that the other rounds are products of P with vectors, with nothing to overflow or to vanish.
Constant factors cancel; the mean of the columns' sums stands for the published B / K, so that nobody need know how many
rows others have.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

CACHED = 2**17  # numbers of a block that stays in a core's cache


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Teacher logits [b, K] of this process to probabilities [b, K]: rows sum to 1, columns of all rows to about B / K.

    Rows may be unlike in number on each process, also none; all must call. fp32, of fp64 logits fp64.
    Raises ValueError for less than one iteration.
    """
    if iterations < 1:
        raise ValueError(f"{iterations} Sinkhorn iterations: at least 1 is needed, 3 are published")
    with torch.autocast(logits.device.type, enabled=False):
        m = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
        m.sub_(_logsumexp_of_columns(m))
        p = m.sub_(m.amax(1, keepdim=True)).exp_()  # P but for the scale of its rows, in the place of M
        row, column = 1 / p.sum(1), p.new_ones(p.shape[1])
        for _ in range(iterations - 1):
            column = _sum_over_processes(p.T @ row)
            column = column.mean() / column
            row = 1 / (p @ column)
        return p.mul_(column).mul_(row[:, None])


def _logsumexp_of_columns(m: Tensor) -> Tensor:
    """[K], over the rows of all processes; -inf from a process without rows."""
    size = m.shape[1] if m.is_cuda else max(1, CACHED // max(1, len(m)))
    own = torch.cat([part.logsumexp(0) for part in m.split(size, dim=1)])
    if not _distributed():
        return own
    top = own.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX)
    return top + _sum_over_processes((own - top).exp()).log()


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
