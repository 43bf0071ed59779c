"""Distillation: the student's class token and patches predict those of one or several frozen towers of any kind.

B images, two global views, h x w the student's patch grid, D its features, D_t a tower's.

A tower sees the views at the size that gives it the student's grid, with its own normalisation. Towers differ a hundred
times in the variance of their features, so each one's are brought to mean 0 and to a variance of 1 on average over its
features before they are compared by squared error: a loss of 1 is what predicting the mean gives, for every tower. That
is PHI-S (arXiv 2410.01680) but for its rotation, which squared errors do not see. Only global views are compared, so
every tower is seen at every size that the student learns at (else it answers one tower at one size and another at
another: RADIOv2.5, arXiv 2412.07679).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.errors import ConfigError
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.tokens import patch_size, tokens, width
from dino_tower.tower import Tower, load_tower

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network

MOMENTUM = 0.99  # of the towers' statistics


@lru_cache(maxsize=2)
def towers(names: tuple[str, ...]) -> tuple[Tower, ...]:
    """The frozen towers, the same for the term and its parts. Raises ConfigError for one that cannot be had."""
    found = tuple(load_tower(name) for name in names)
    for tower in found:
        tower.model.requires_grad_(False)
    return found


class Speaker(nn.Module):
    """What the student says in a tower's language: class tokens and patches [..., D] to [..., D_t], each by an MLP.

    hidden: its width; 0: the features themselves, which D = D_t alone allows.
    """

    cls: nn.Module
    patches: nn.Module

    def __init__(self, width: int, outputs: int, hidden: int) -> None:
        super().__init__()
        if not hidden:
            self.cls = self.patches = nn.Identity()
            return
        self.cls, self.patches = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, outputs))
            for _ in range(2)
        )


class Standard(nn.Module):
    """Running mean [D] and variance (a number, the mean over features) of a tower's features; `commit` moves them."""

    mean: Tensor
    variance: Tensor
    steps: Tensor
    seen: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(features + 2, dtype=torch.float64), persistent=False)

    def observe(self, x: Tensor) -> None:
        """Note features [..., D] for the next commit."""
        rows = x.float().flatten(0, -2).double()
        self.seen += torch.cat([rows.sum(0), rows.square().mean(1).sum()[None], rows.new_tensor([len(rows)])])

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., D] standardised by what was committed."""
        return (x.float() - self.mean) * self.variance.clamp(min=1e-12).rsqrt()

    def commit(self) -> None:
        """Move mean and variance by those of what all processes have noted; the first time, to them."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.seen)
        *_, square, rows = self.seen
        mean = self.seen[:-2] / rows
        share = 1 - min(MOMENTUM, 1 - 1 / (1 + int(self.steps)))
        self.mean.lerp_(mean.float(), share)
        self.variance.lerp_((square / rows - mean.square().mean()).float(), share)
        self.steps += 1
        self.forget()

    def forget(self) -> None:
        """Drop what was noted."""
        self.seen.zero_()


class Distil(Term):
    """State: `distil_statistics`, of class tokens and patches of each tower. A run's first step only measures them."""

    looks = "globals"
    asks_teacher = False
    reads_patches = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.towers = towers(config.distil.teachers)  # in a tuple, so not among the modules that are saved
        self.patches, self.hidden = config.distil.patches, config.distil.hidden
        self.distil_statistics = nn.ModuleList([Standard(tower.width) for tower in self.towers for _ in range(2)])

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        wide, found = width(backbone), towers(config.distil.teachers)
        hidden = config.distil.hidden
        for name, tower in zip(config.distil.teachers, found, strict=True):
            if not hidden and tower.width != wide:
                raise ConfigError(
                    f"distil.hidden 0 compares the features themselves: {name} has {tower.width} a token and the "
                    f"student {wide}; give the MLP between them a width, --distil.hidden 1024"
                )
        return {"distil": lambda: nn.ModuleList([Speaker(wide, tower.width, hidden) for tower in found])}

    @staticmethod
    def student_only() -> frozenset[str]:
        return frozenset({"distil"})

    def targets(self, teacher: Network, seen: Seen | None, inputs: Inputs, rates: Rates) -> list[tuple[Tensor, Tensor]]:
        """For each tower the standardised class tokens [2 B, D_t] and patches [2 B, h_t, w_t, D_t]."""
        pixels = torch.cat([inputs.unnormalised(view) for view in inputs.views[:2]])
        grid = inputs.views[0].shape[-1] // patch_size(teacher.backbone)
        found = []
        for i, tower in enumerate(self.towers):
            out = tokens(tower.to(pixels.device).model, suited(tower, pixels, grid))
            one, other = self._statistics(i)
            one.observe(out.pooled)
            other.observe(out.patches)
            found.append((one(out.pooled), other(out.patches)))
        return found

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: Any, rates: Rates) -> Tensor:
        assert seen is not None and seen.patches is not None
        own, total = seen.patches.flatten(0, 1), []
        for i, (speaker, (cls, patches)) in enumerate(zip(student.part("distil"), targets, strict=True)):
            if patches.shape[1:3] != own.shape[1:3]:  # a tower that takes one size only
                patches = F.interpolate(patches.movedim(-1, 1), own.shape[1:3], mode="bilinear").movedim(1, -1)
            said = [speaker.cls(seen.pooled[:2].flatten(0, 1)).float(), speaker.patches(own).float()]
            if not self.hidden:  # the features themselves, on the tower's scale
                said = [one(x) for one, x in zip(self._statistics(i), said, strict=True)]
            total += [F.mse_loss(said[0], cls), self.patches * gap(said[1], patches, inputs.masks)]
        measured = all(int(one.steps) for i in range(len(targets)) for one in self._statistics(i))
        return torch.stack(total).sum() / len(targets) * (1.0 if measured else 0.0)

    def _statistics(self, tower: int) -> tuple[Any, Any]:
        """Of its class tokens and of its patches."""
        return self.distil_statistics[2 * tower], self.distil_statistics[2 * tower + 1]

    def frozen_networks(self) -> list[nn.Module]:
        return [tower.model for tower in self.towers]

    def commit(self) -> None:
        for i in range(len(self.towers)):
            for one in self._statistics(i):
                one.commit()

    def forget(self) -> None:
        for i in range(len(self.towers)):
            for one in self._statistics(i):
                one.forget()


def gap(said: Tensor, patches: Tensor, masks: Tensor | None) -> Tensor:
    """Mean squared error [2 B, h, w, D_t] of the patches that the student sees: over each view's, then over views.

    masks: bool [2, B, h, w], those it does not see.
    """
    if masks is None:
        return F.mse_loss(said, patches)
    seen = ~masks.flatten(0, 1)
    each = (said - patches).square().mean(-1) * seen
    return (each.sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)).mean()


def suited(tower: Tower, pixels: Tensor, grid: int) -> Tensor:
    """Pixels [B, 3, S, S] in [0, 1] as the tower takes them: its normalisation, and the size that gives it `grid` x
    `grid` patches, or its only size."""
    height, width = tower.native or (grid * tower.patch, grid * tower.patch)
    if pixels.shape[-2:] != (height, width):
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (
        pixels.new_tensor(getattr(tower.processor, name)).view(1, 3, 1, 1) for name in ("image_mean", "image_std")
    )
    return (pixels - mean) / std
