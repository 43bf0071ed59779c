"""The centre that keeps self-distillation from collapsing, and the targets it gives.

B images a process, K prototypes. Reference: main_dino.py::DINOLoss; DINO, section 3.1.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
        return (teacher.float() - self.centre).div_(temperature).softmax(-1)

    @torch.no_grad()
    def observe(self, teacher: Tensor) -> None:
        """Collect teacher logits [..., K]."""
        rows = teacher.float().flatten(0, -2)
        self.seen += rows.sum(0, keepdim=True)
        self.rows += len(rows)

    @torch.no_grad()
    def observe_mean(self, mean: Tensor, rows: int) -> None:
        """Collect the mean [1, K] of so many rows of logits."""
        self.seen += mean.float() * rows
        self.rows += rows

    @torch.no_grad()
    def commit(self) -> None:
        """Move the centre: c <- m c + (1 - m) mean, the mean taken over what all processes observed."""
        rows = self.rows
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.seen)
            counts = torch.tensor(rows, device=self.seen.device)  # of masked patches each process has its own number
            dist.all_reduce(counts)
            rows = int(counts)
        if rows:
            self.centre.mul_(self.momentum).add_(self.seen / rows, alpha=1 - self.momentum)
        self.forget()

    def forget(self) -> None:
        """Drop what was observed since the last commit."""
        self.seen.zero_()
        self.rows = 0
