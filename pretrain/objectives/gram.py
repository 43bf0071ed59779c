"""Gram anchoring: how alike the patches of a view are to each other stays as a frozen tower has it (DINOv3).

In long runs the class token goes on to improve while patches lose their places; a tower from before that, asked at a
higher resolution, holds their similarities and leaves the features themselves free. I = 2 B global views of N patches,
x the unit vectors of the student's patches, y those of the tower's on the student's grid:

    L = mean over views and pairs (x x' - y y')^2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_tower.pretrain.objectives.distil import suited, towers
from dino_tower.pretrain.objectives.term import Inputs, Rates, Seen, Term
from dino_tower.pretrain.settings import Config
from dino_tower.tokens import patch_size, tokens

if TYPE_CHECKING:
    from dino_tower.pretrain.student_teacher import Network


class Gram(Term):
    """No state: the tower does not move. The views are enlarged for it, where the authors cut them larger."""

    looks = "globals"
    asks_teacher = False
    reads_patches = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.towers = towers((config.gram.tower or "",))  # in a tuple, so not among the modules that are saved
        self.scale = config.gram.scale

    def targets(self, teacher: Network, seen: Seen | None, inputs: Inputs, rates: Rates) -> Tensor:
        """Similarities [2 B, N, N] of the tower's patches."""
        (tower,) = self.towers
        pixels = torch.cat([inputs.unnormalised(view) for view in inputs.views[:2]])
        grid = inputs.views[0].shape[-1] // patch_size(teacher.backbone)
        patches = tokens(tower.to(pixels.device).model, suited(tower, pixels, round(grid * self.scale))).patches
        on_grid = F.interpolate(patches.movedim(-1, 1).float(), (grid, grid), mode="bicubic", antialias=True)
        return similarities(on_grid.movedim(1, -1))

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: Tensor, rates: Rates) -> Tensor:
        assert seen is not None and seen.patches is not None
        return F.mse_loss(similarities(seen.patches.flatten(0, 1)), targets)


def similarities(patches: Tensor) -> Tensor:
    """Cosines [I, N, N] between all patches [I, h, w, D] of a view, fp32."""
    with torch.autocast(patches.device.type, enabled=False):
        x = F.normalize(patches.float().flatten(1, 2), dim=-1)
        return x @ x.transpose(1, 2)
