"""Student and teacher: two networks of the same form, the second an exponential moving average of the first.

V views of B images, D features. Reference: main_dino.py, utils.py::MultiCropWrapper.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.positions import rescale_at_random
from dino_tower.pretrain.algorithms.heads import Prototypes
from dino_tower.pretrain.network.lean_blocks import class_tokens
from dino_tower.pretrain.objectives.objective import Losses, Objective
from dino_tower.pretrain.objectives.term import Inputs, Rates, Seen
from dino_tower.tokens import tokens

if TYPE_CHECKING:
    from dino_tower.pretrain.network.lora import Adapter


class Network(nn.Module):
    """A backbone with the parts that the terms of an objective put beside it: heads, decoders, predictors, by name.

    adapter: inside the backbone, where only that is trained of it.
    """

    adapter: Adapter | None = None

    def __init__(self, backbone: PreTrainedModel, **parts: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        for name, part in parts.items():
            self.add_module(name, part)

    def part(self, name: str) -> Any:
        """The part of that name, or, after a dot, something inside it."""
        return self.get_submodule(name)

    def parts(self) -> dict[str, nn.Module]:
        """All of them by name."""
        return {name: part for name, part in self.named_children() if name != "backbone"}

    def prototypes(self) -> list[nn.Parameter]:
        """The parameters of all last layers, which do not move at the start of a run."""
        return [p for module in self.modules() if isinstance(module, Prototypes) for p in module.parameters()]

    def held(self, rates: Rates) -> list[nn.Parameter]:
        """The parameters that do not move in a step."""
        held = self.prototypes() if rates.frozen else []
        return [*held, *self.backbone.parameters()] if rates.backbone_frozen else held

    def see(self, views: Sequence[Tensor], masks: Tensor | None = None, patches: bool = True) -> Seen:
        """Views [B, 3, S, S], the two global ones first, through the backbone.

        Global and local views go in one call each, whatever their sizes. masks: bool [2, B, h, w], patches of the
        global views that are hidden from it. patches: whether these views' patch tokens are asked for.
        """
        first, hidden = torch.cat(list(views[:2])), None if masks is None else masks.flatten(0, 1)
        found = None
        if patches:
            all_tokens = tokens(self.backbone, first, hidden)
            pooled, found = all_tokens.pooled, all_tokens.patches.unflatten(0, (2, -1))
        else:
            pooled = class_tokens(self.backbone, first, hidden)
        if len(views) > 2:
            pooled = torch.cat([pooled, class_tokens(self.backbone, torch.cat(list(views[2:])))])
        return Seen(pooled.unflatten(0, (len(views), -1)), found)


class Student(nn.Module):
    """The trained network with its loss inside.

    The loss is computed here because a prepared module's outputs are cast to fp32 and gathered by its wrapper: scalars
    leave, never the logits of all views.
    """

    def __init__(self, network: Network, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.losses = objective.losses  # a function: as a module its state would be broadcast before each step

    def forward(self, inputs: Inputs, targets: Mapping[str, Any], rates: Rates) -> Losses:
        """Inputs and the teacher's targets by term to the scalar `loss` and the terms it is made of."""
        losses = self.losses(self.network, inputs, targets, rates)
        if rates.frozen and dist.is_available() and dist.is_initialized():
            # DDP waits for a gradient of every parameter: zeros, which the loop drops
            zero = 0.0 * sum(p.sum() for p in self.network.prototypes() if p.requires_grad)
            losses = {**losses, "loss": losses["loss"] + zero}
        return losses


def make_teacher(network: Network, without: Collection[str] = ()) -> Network:
    """A frozen copy, without some parts, that drops no paths and moves no positions. What is not trained is not copied:
    one serves both.

    It stays in train mode, as in the reference, for heads with batch norm.
    """
    shared = {id(p): p for p in network.parameters() if not p.requires_grad}
    teacher = copy.deepcopy(network, shared).requires_grad_(False)
    for name in without:
        delattr(teacher, name)
    dropping: list[Any] = [m for m in teacher.modules() if hasattr(m, "drop_prob")]
    for module in dropping:
        module.drop_prob = 0.0
    if hasattr(teacher.backbone, "rope_embeddings"):
        rescale_at_random(teacher.backbone, None)
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
    """teacher <- momentum * teacher + (1 - momentum) * student, for the parameters that the teacher has.

    Batch statistics are each one's own.
    """
    theirs = dict(student.named_parameters())
    mine = {name: p for name, p in teacher.named_parameters() if p is not theirs[name]}
    torch._foreach_lerp_(list(mine.values()), [theirs[name] for name in mine], 1 - momentum)
