"""MAE: the encoder sees a quarter of the patches, a small decoder paints the others (He et al. 2022, arXiv 2111.06377).

B pictures of N patches, K of these seen and M hidden, p pixels along a patch, D features.

    target_m = (patch_m - mean) / sqrt(variance + 1e-6)       each patch by its own pixels' mean and variance
    L = mean over hidden patches and their 3 p^2 numbers of (decoder_m - target_m)^2

Only hidden patches are judged. The encoder does not see mask tokens and costs what K patches cost. It learns from one
view, the first global one: the method needs no other, and the second and the local ones are left alone. Its views want
no colour changes (presets/mae_cpu.yaml switches them off). The encoder's positions are its class's own, learned ones;
the decoder's are fixed. References: mae/models_mae.py, section 3 and table 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.alarms import Rule
from dino_tower.families.of_transformers import patchify
from dino_tower.pretrain.loading.draws import Place
from dino_tower.pretrain.network.predictor import Predictor
from dino_tower.pretrain.network.visible import visible_tokens
from dino_tower.pretrain.objectives.masked_settings import kept_patches
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.tokens import patch_size, width

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network


@dataclass(frozen=True)
class DrawSeen:
    """Which patches a sample shows, each as likely as another: {"mae_seen": int64 [K], "mae_hidden": int64 [M]}."""

    patches: int
    seen: int

    def __call__(self, place: Place) -> dict[str, NDArray[Any]]:
        order = place.rng().permutation(self.patches)
        return {"mae_seen": order[: self.seen], "mae_hidden": order[self.seen :]}


class Mae(Term):
    """No state, and the teacher is asked nothing: it only follows, to be watched and exported."""

    looks = "none"
    asks_teacher = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.normalise = config.mae.normalise

    @staticmethod
    def one_view(config: Config) -> bool:
        return True

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        patch, c = patch_size(backbone), config.mae
        side, draw = config.crops.global_size // patch, nn.init.xavier_uniform_
        make = partial(Predictor, width(backbone), 3 * patch**2, (side, side), c.width, c.depth, c.heads, draw)
        return {"decoder": make}

    @staticmethod
    def student_only() -> frozenset[str]:
        return frozenset({"decoder"})

    @staticmethod
    def draw(config: Config, patch: int) -> DrawSeen:
        patches = (config.crops.global_size // patch) ** 2
        return DrawSeen(patches, kept_patches(patches, config.mae.ratio))

    def targets(self, teacher: Network, seen: Seen | None, inputs: Inputs, rates: Rates) -> Tensor:
        """What the hidden patches look like [B, M, 3 p^2]."""
        patches = patchify(inputs.views[0], patch_size(teacher.backbone))
        hidden = patches.take_along_dim(inputs.drawn["mae_hidden"][..., None], 1)
        if not self.normalise:
            return hidden
        return (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, keepdim=True) + 1e-6).sqrt()

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: Tensor, rates: Rates) -> Tensor:
        keep, hidden = inputs.drawn["mae_seen"], inputs.drawn["mae_hidden"]
        front, patches = visible_tokens(student.backbone, inputs.views[0], keep)
        painted = student.part("decoder")(front, patches, keep, hidden)
        return (painted.float() - targets).square().mean()

    @torch.no_grad()
    def health(self, targets: Tensor, loss: Tensor) -> dict[str, float]:
        """pixels_explained: share of the hidden pixels' variance that the decoder accounts for; at most 1, 0 if it
        paints one grey."""
        return {"pixels_explained": 1 - (loss / targets.var(correction=0).clamp(min=1e-12)).item()}

    def rules(self) -> dict[str, Rule]:
        return {
            "nothing-painted": Rule(
                lambda row: row["pixels_explained"] < 0.01,
                "the decoder paints every hidden patch in one flat colour",
                "Raise optim.base_lr, shorten optim.warmup_epochs, or lower mae.ratio",
            )
        }
