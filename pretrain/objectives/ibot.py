"""iBOT: the student says about patches that it does not see what the teacher says, who sees them.

I = 2 B global views of h x w patches, M of these hidden in all, K prototypes. iBOT, section 3.2; DINOv2, section 4;
patch_loss.py has the loss, masks.py the masks.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dino_tower.alarms import Rule, collapse_rules
from dino_tower.pretrain.algorithms.heads import DinoHead, Prototypes
from dino_tower.pretrain.algorithms.patch_loss import masked_weights, patch_loss
from dino_tower.pretrain.loading.draws import Draw
from dino_tower.pretrain.objectives.dino import centring, head, rows_of, sharpness
from dino_tower.pretrain.objectives.hidden import DrawMasks
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.tokens import width

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network


class Ibot(Term):
    """State: `patch_centre`, unless Sinkhorn-Knopp is in its place. The same temperatures as for the class token."""

    looks = "globals"
    reads_patches = True
    hides = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        ibot, own = config.ibot, config.ibot.head != "shared"
        self.temperature = config.loss.student_temp
        self.prototypes = (ibot.prototypes if own else None) or config.head.prototypes
        self.patch_centre = centring(config, self.prototypes)
        self.all_patches = config.loss.centring == "centre" and ibot.centre == "all"
        self.mlp = "patch_head" if ibot.head == "separate" else "head"
        self.last_layer = {"shared": "head.last_layer", "mlp": "patch_prototypes", "separate": "patch_head.last_layer"}[
            ibot.head
        ]
        # batch norm cannot take one row: with a batch norm at least two are computed, of weight 0 if they are not meant
        self.least = 2 if config.head.batch_norm else 0

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        c, ibot = config.head, config.ibot
        prototypes, bottleneck = ibot.prototypes or c.prototypes, ibot.bottleneck or c.bottleneck
        rest = (c.norm_last_layer, c.batch_norm, c.weight_norm)
        own: dict[str, Parts] = {
            "shared": head(config, backbone),
            "mlp": {
                **head(config, backbone),
                "patch_prototypes": partial(Prototypes, c.bottleneck, prototypes, c.norm_last_layer, c.weight_norm),
            },
            "separate": {
                "patch_head": partial(DinoHead, width(backbone), prototypes, c.hidden, bottleneck, *rest),
            },
        }
        return own[ibot.head]

    @staticmethod
    def draw(config: Config, patch: int) -> Draw:
        side, ibot = config.crops.global_size // patch, config.ibot
        return DrawMasks((side, side), ibot.masks, ibot.ratios, ibot.spreads, ibot.share, ibot.range)

    def targets(self, teacher: Network, seen: Seen | None, inputs: Inputs, rates: Rates) -> Tensor:
        """Probabilities [M, K] of the hidden patches."""
        assert seen is not None and seen.patches is not None
        chosen, hidden = self._chosen(inputs)
        project, prototypes = teacher.part(self.mlp).project, teacher.part(self.last_layer)
        patches = seen.patches.flatten(0, 3)
        if self.all_patches:
            z = project(patches)
            # the mean of the logits is the logits of the mean: [1, K] instead of all patches' [I h w, K], and in fp32,
            # since the rounding of one row does not average out
            with torch.autocast(z.device.type, enabled=False):
                self.patch_centre.observe_mean(prototypes(z.float().mean(0, keepdim=True)), len(z))
            logits = prototypes(z[chosen[:hidden]])
        else:
            logits = prototypes(project(patches[chosen]))[:hidden]
            self.patch_centre.observe(logits)
        targets = self.patch_centre.targets(logits, rates.teacher_temp)
        return torch.cat([targets, targets.new_zeros(len(chosen) - hidden, targets.shape[1])])

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: Tensor, rates: Rates) -> Tensor:
        assert seen is not None and seen.patches is not None and inputs.masks is not None
        chosen, hidden = self._chosen(inputs)
        z = student.part(self.mlp).project(seen.patches.flatten(0, 3)[chosen])
        each = masked_weights(inputs.masks.flatten(0, 1))
        each = torch.cat([each, each.new_zeros(len(chosen) - hidden)])
        weight, gain = rows_of(student.part(self.last_layer), rates.frozen)
        return patch_loss(z, weight, targets, each, self.temperature, gain)

    def _chosen(self, inputs: Inputs) -> tuple[Tensor, int]:
        """Where the hidden patches are among all [I h w], and how many they are; `least` or more are named."""
        assert inputs.masks is not None
        chosen = inputs.masks.flatten().nonzero()[:, 0]
        missing = max(0, self.least - len(chosen))
        return torch.cat([chosen, chosen.new_zeros(missing)]), len(chosen)

    def commit(self) -> None:
        self.patch_centre.commit()

    def forget(self) -> None:
        self.patch_centre.forget()

    @torch.no_grad()
    def health(self, targets: Tensor, loss: Tensor) -> dict[str, float]:
        """As for the class token, with `patch_` in front; where nothing was hidden, those of a uniform target."""
        hidden = targets if len(targets) else targets.new_full((1, self.prototypes), 1 / self.prototypes)
        return sharpness(hidden, "patch_")

    def rules(self) -> dict[str, Rule]:
        return collapse_rules(self.prototypes, "patch_", "patch")
