"""A tower with a head on it: the module that is trained.

Legend: B images, K outputs, h x w the grid of the head's scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dino_tower.adapters.dense_heads import HEADS, ClassHead, layers_for
from dino_tower.adapters.tasks import TASKS
from dino_tower.errors import ConfigError, unknown
from dino_tower.families import family_of
from dino_tower.peft_adapter import inner
from dino_tower.tokens import Tokens, layers, tokens
from dino_tower.tower import Tower


class Adapted(nn.Module):
    """tower: a PeftModel or a tower's own model. frozen: its tokens are taken without gradients, as in evaluation.

    forward: normalised pixels [B, 3, H, W] -> the head's scores, [B, K] or [B, K, h, w].
    """

    def __init__(self, tower: nn.Module, head: nn.Module, which: Sequence[int], frozen: bool) -> None:
        super().__init__()
        self.tower, self.head, self.which, self.frozen = tower, head, tuple(which), frozen

    def forward(self, pixels: Tensor) -> Tensor:
        if self.frozen:
            with torch.no_grad():
                seen = self.tokens(pixels)
        else:
            seen = self.tokens(pixels)
        scores: Tensor = self.head(seen)
        return scores

    def tokens(self, pixels: Tensor) -> list[Tokens]:
        """Normed tokens of the layers that the head reads."""
        model = inner(self.tower)
        return [tokens(model, pixels)] if len(self.which) == 1 else layers(model, pixels, self.which)

    def train(self, mode: bool = True) -> Adapted:
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self


def build_head(
    kind: str, task: str, tower: Tower, outputs: int, channels: int, dropout: float
) -> tuple[nn.Module, tuple[int, ...]]:
    """A fresh head and the layers of the tower that it reads.

    Raises ConfigError for an unknown head, one that does not suit the task, and a pyramid on a convolutional network.
    """
    if kind not in HEADS:
        raise unknown("head", kind, HEADS, "head.kind")
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    has_cls = family_of(tower.model).has_cls(tower.model)
    if not TASKS[task].dense:
        if kind != "linear":
            raise ConfigError(f"head.kind {kind} is for pixels; task {task} takes linear")
        return ClassHead(tower.width, outputs, has_cls, dropout), (tower.depth,)
    if kind == "pyramid" and family_of(tower.model).attention is None:
        raise ConfigError(
            "head.kind pyramid reads four layers of a transformer; this tower is convolutional: take conv"
        )
    which = layers_for(kind, tower.depth)
    if kind == "linear":
        return HEADS[kind](tower.width, outputs, dropout=dropout, with_cls=task == "depth" and has_cls), which
    return HEADS[kind](tower.width, outputs, channels=channels, dropout=dropout), which


def freeze_unused(model: Adapted, side: int) -> None:
    """Switch off what is trainable and gets no gradient (a mask token, a pooler): several processes would wait for it.

    side: pixels of a trial picture.
    """
    device = next(model.parameters()).device
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    before = model.training
    model.eval()
    model(noise).float().square().sum().backward()
    model.train(before)
    for p in model.parameters():
        p.requires_grad_(p.grad is not None)
        p.grad = None
