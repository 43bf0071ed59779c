"""Student and teacher: two networks of the same form, the second an exponential moving average of the first.

V views of B images, K prototypes. Reference: main_dino.py, utils.py::MultiCropWrapper.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.pretrain.heads import DinoHead
from dino_tower.pretrain.losses import dino_loss
from dino_tower.tokens import tokens


class Network(nn.Module):
    """A backbone with its projection head."""

    def __init__(self, backbone: PreTrainedModel, head: DinoHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def project(self, views: Sequence[Tensor]) -> Tensor:
        """Views [B, 3, S, S], the two global ones first, to unit vectors [V, B, d] in front of the prototypes.

        Global and local views go through the backbone in one call each, whatever their sizes, and all features through
        the head in one call, so that a batch norm there sees all views together as in the reference.
        """
        groups = [views[:2], views[2:]] if len(views) > 2 else [views]
        features = torch.cat([tokens(self.backbone, torch.cat(list(group))).pooled for group in groups])
        return self.head.project(features).unflatten(0, (len(views), -1))

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The same views to logits [V, B, K]."""
        return self.head.last_layer(self.project(views))


class Student(nn.Module):
    """The trained network with its loss inside.

    The loss is computed here because a prepared module's outputs are cast to fp32 and gathered by its wrapper: a scalar
    leaves, never the logits of all views.
    """

    def __init__(self, network: Network, temperature: float = 0.1) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, views: Sequence[Tensor], targets: Tensor, frozen: bool = False) -> Tensor:
        """Views [B, 3, S, S] and the teacher's probabilities [2, B, K] to the scalar loss.

        frozen: the prototypes do not move in this step, so their gradient is not computed.
        """
        z = self.network.project(views)
        last = self.network.head.last_layer
        if not frozen:
            return dino_loss(z, last.weight_v, targets, self.temperature, last.weight_g)
        loss = dino_loss(z, last.weight_v.detach(), targets, self.temperature, last.weight_g.detach())
        if dist.is_available() and dist.is_initialized():
            # DDP waits for a gradient of every parameter: zeros, which the loop drops
            loss = loss + 0.0 * sum(p.sum() for p in last.parameters() if p.requires_grad)
        return loss


def make_teacher(network: Network) -> Network:
    """A frozen copy that drops no paths; it stays in train mode, as in the reference, for heads with batch norm."""
    teacher = copy.deepcopy(network).requires_grad_(False)
    dropping: list[Any] = [m for m in teacher.modules() if hasattr(m, "drop_prob")]
    for module in dropping:
        module.drop_prob = 0.0
    return teacher


class BatchStatistics:
    """The running statistics of batch norms: a forward pass moves them before it is known whether the step is good."""

    def __init__(self, *networks: nn.Module) -> None:
        self.live = [buffer for network in networks for buffer in network.buffers()]
        self.kept = [buffer.clone() for buffer in self.live]

    def keep(self) -> None:
        """Remember them as they are."""
        for kept, live in zip(self.kept, self.live, strict=True):
            kept.copy_(live)

    def put_back(self) -> None:
        """Make them again what they were at the last `keep`."""
        for kept, live in zip(self.kept, self.live, strict=True):
            live.copy_(kept)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for parameters; batch statistics are each one's own."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
