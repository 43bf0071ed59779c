"""Gram anchoring: how alike the patches of a view are to each other stays as a frozen tower has it (DINOv3).

In long runs the class token goes on to improve while patches lose their places; a tower from before that, asked at a
higher resolution, holds their similarities and leaves the features themselves free. I = 2 B global views of N patches,
x the unit vectors of the student's patches, y those of the tower's on the student's grid:

    L = mean over views and pairs (x x' - y y')^2

The tower is another one, or the run's own teacher from some time ago, renewed now and then: in DINOv3 every 10,000
steps, three times at most.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_tower.pretrain.network.weights import compute_like
from dino_tower.pretrain.objectives.distil import suited, towers
from dino_tower.pretrain.objectives.term import Inputs, Rates, Seen, Term
from dino_tower.pretrain.settings import Config
from dino_tower.tokens import patch_size, tokens

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network

SELF = "self"


class Gram(Term):
    """State: `gram_anchor`, where the tower is the run's own. The views are enlarged for it, where the authors cut them
    larger."""

    looks = "globals"
    asks_teacher = False
    reads_patches = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.scale, self.start = config.gram.scale, config.gram.start
        self.gram_anchor = Anchor(config) if config.gram.tower == SELF or config.gram.refresh else None
        # in a tuple, so not among the modules that are saved
        self.towers = () if self.gram_anchor is not None else towers((config.gram.tower or "",))
        self.counts = False

    def targets(self, teacher: Network, seen: Seen | None, inputs: Inputs, rates: Rates) -> Tensor | None:
        """Similarities [2 B, N, N] of the tower's patches; None before the term counts."""
        self.counts = rates.progress >= self.start
        if not self.counts:
            return None
        grid = inputs.views[0].shape[-1] // patch_size(teacher.backbone)
        side = round(grid * self.scale)
        if self.gram_anchor is not None:
            patches = self.gram_anchor.patches(teacher, inputs, side)
        else:
            (tower,) = self.towers
            pixels = torch.cat([inputs.unnormalised(view) for view in inputs.views[:2]])
            patches = tokens(tower.to(pixels.device).model, suited(tower, pixels, side)).patches
        on_grid = F.interpolate(patches.movedim(-1, 1).float(), (grid, grid), mode="bicubic", antialias=True)
        return similarities(on_grid.movedim(1, -1))

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: Tensor | None, rates: Rates) -> Tensor:
        assert seen is not None and seen.patches is not None
        if targets is None:
            return 0.0 * seen.patches.float().sum()
        return F.mse_loss(similarities(seen.patches.flatten(0, 1)), targets)

    def frozen_networks(self) -> list[nn.Module]:
        return [tower.model for tower in self.towers]

    def commit(self) -> None:
        if self.gram_anchor is not None and self.counts:
            self.gram_anchor.steps += 1


class Anchor(nn.Module):
    """The run's own teacher as it once was.

    backbone: of the run's class. steps: that the term has counted; copies: how often the teacher was copied.
    """

    of_one_run = True  # a run that starts from this one has its own
    steps: Tensor
    copies: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        # here, not above: networks are built of what the terms ask for
        from dino_tower.pretrain.network.networks import make_backbone

        gram, own = config.gram, config.gram.tower == SELF
        with torch.random.fork_rng(devices=[]):
            start = replace(config, init_from=None if own else gram.tower)
            self.backbone: Any = make_backbone(start, untrained=own).eval().requires_grad_(False)
        self.due = [0] * own + [gram.refresh * (i + 1) for i in range(gram.refreshes if gram.refresh else 0)]
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("copies", torch.zeros((), dtype=torch.int64))

    def patches(self, teacher: Network, inputs: Inputs, side: int) -> Tensor:
        """Of both global views, enlarged to side x side patches: [2 B, side, side, D]."""
        copies = int(self.copies)
        if copies < len(self.due) and int(self.steps) >= self.due[copies]:
            self.backbone.load_state_dict(teacher.backbone.state_dict())
            compute_like(self.backbone, teacher.backbone)
            self.copies += 1
        pixels = torch.cat(inputs.views[:2])
        if (size := side * patch_size(self.backbone)) != pixels.shape[-1]:
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
        return tokens(self.backbone, pixels).patches


def similarities(patches: Tensor) -> Tensor:
    """Cosines [I, N, N] between all patches [I, h, w, D] of a view, fp32."""
    with torch.autocast(patches.device.type, enabled=False):
        x = F.normalize(patches.float().flatten(1, 2), dim=-1)
        return x @ x.transpose(1, 2)
