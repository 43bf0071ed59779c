"""The loss of DINO and the centre that keeps its teacher from collapsing.

V views (the two global ones first), B images a process, K prototypes. Logits stay in the order [V, B, K].
Reference: main_dino.py::DINOLoss; DINO, section 3.1.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def dino_loss(student: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of every student view against the teacher's other views, averaged over pairs and images.

    student: logits [V, B, K]; targets: probabilities [2, B, K], each row summing to 1; returns a scalar.

    With T_v the sum of the targets that view v is compared with,

        L = - sum_v sum_b <T_vb, log_softmax(s_vb / temperature)> / (B (2 V - 2))

    which is the published double loop over pairs in a single pass over each view.
    """
    views, batch, _ = student.shape
    log_p = (student.float() / temperature).log_softmax(-1)
    agreement = (log_p[0] * targets[1]).sum() + (log_p[1] * targets[0]).sum()
    if views > 2:
        agreement = agreement + torch.einsum("vbk,bk->", log_p[2:], targets[0] + targets[1])
    return -agreement / (batch * (2 * views - 2))


class Centre(nn.Module):
    """Running mean of the teacher's logits [1, K], subtracted before its softmax.

    `observe` collects the logits of one or more micro-batches, `commit` moves the centre once by their mean over all
    processes. Targets therefore always use the centre from before the step, and an accumulation window or a step that
    is thrown away (`forget`) leaves it as it was.
    """

    centre: Tensor
    seen: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(1, prototypes))
        self.register_buffer("seen", torch.zeros(1, prototypes), persistent=False)
        self.rows = 0

    @torch.no_grad()
    def targets(self, teacher: Tensor, temperature: float) -> Tensor:
        """Teacher logits [..., K] to probabilities of the same shape: softmax((t - c) / temperature)."""
        return ((teacher.float() - self.centre) / temperature).softmax(-1)

    @torch.no_grad()
    def observe(self, teacher: Tensor) -> None:
        """Collect teacher logits [..., K]."""
        rows = teacher.float().flatten(0, -2)
        self.seen += rows.sum(0, keepdim=True)
        self.rows += len(rows)

    @torch.no_grad()
    def commit(self) -> None:
        """Move the centre: c <- m c + (1 - m) mean, the mean taken over what all processes observed."""
        rows = self.rows
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.seen)
            rows *= dist.get_world_size()
        self.centre.mul_(self.momentum).add_(self.seen / rows, alpha=1 - self.momentum)
        self.forget()

    def forget(self) -> None:
        """Drop what was observed since the last commit."""
        self.seen.zero_()
        self.rows = 0
