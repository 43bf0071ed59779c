"""Batch norm over the joint batch of several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn


class _AllReducedBatchNorm:
    """Batch norm over the joint batch of all processes, for backends without a kernel of their own (gloo).

    Mixed into BatchNorm1d / BatchNorm2d; x is [B, C] or [B, C, H, W], B its own on each process.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)  # type: ignore[misc]
        half, x = x, x.float()  # under autocast x comes in half precision, which is too coarse for statistics
        axes = [0, *range(2, x.ndim)]
        rows = x.new_tensor([x.numel() // x.shape[1]])
        shape = [1, -1, *[1] * (x.ndim - 2)]
        total, count = dist_nn.all_reduce(torch.cat([x.sum(axes), rows])).split(x.shape[1])
        mean = total / count
        x = x - mean.view(shape)  # before it is squared: a mean far from 0 would swallow the variance
        variance = dist_nn.all_reduce(x.square().sum(axes)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x * scale.view(shape) + self.bias.view(shape)).to(half.dtype)


class _AllReducedBatchNorm1d(_AllReducedBatchNorm, nn.BatchNorm1d):
    pass


class _AllReducedBatchNorm2d(_AllReducedBatchNorm, nn.BatchNorm2d):
    pass


def synchronise_batch_norm(module: nn.Module) -> None:
    """Make every batch norm inside `module` use the joint batch of all processes; weights and names stay.

    On GPUs torch's SyncBatchNorm, which raises on CPU; there a few lines of all-reduce. Untested on GPU.
    """
    if next(module.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for child in module.modules():
        if type(child) is nn.BatchNorm1d:
            child.__class__ = _AllReducedBatchNorm1d
        elif type(child) is nn.BatchNorm2d:
            child.__class__ = _AllReducedBatchNorm2d
