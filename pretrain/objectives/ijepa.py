"""I-JEPA: from a part of a picture, predict what the teacher makes of other parts (Assran et al., arXiv 2301.08243).

B pictures of h x w patches, K of these context, M target blocks of P patches each, D features.

    target     = LayerNorm(teacher(whole picture)) at the patches of each block       no scale, no shift
    prediction = predictor(student(context patches alone), places of the block)       one pass for each block
    L = mean over blocks, patches and features of smooth-L1(prediction, target)

The student does not see the targets, the teacher sees the whole picture, and no pixels are painted. One view is learned
from, the first global one; the second and the local ones are left alone, and colours want no changes
(presets/ijepa_cpu.yaml). Class tokens and registers, which the authors' networks do not have, help the student's blocks
and are not handed to the predictor, so no loss asks what a class token says: take a class without one (_siglip), or
read the mean of the patches. The teacher's momentum follows the loop's cosine, the authors' a straight line.
multiblock.py has the blocks. References: ijepa/src/train.py, src/models/vision_transformer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.alarms import Rule
from dino_tower.pretrain.draws import Place
from dino_tower.pretrain.multiblock import Blocks, Grid, draw_blocks
from dino_tower.pretrain.objectives.masked_settings import IjepaConfig
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term
from dino_tower.pretrain.predictor import Predictor
from dino_tower.pretrain.settings import Config
from dino_tower.pretrain.visible import visible_tokens
from dino_tower.sources import Source
from dino_tower.tokens import patch_size, tokens, width

if TYPE_CHECKING:
    from dino_tower.pretrain.student_teacher import Network

COLLAPSED = 0.05  # spread of targets


class Targets(NamedTuple):
    """What the teacher says of the blocks [B, M, P, D], and how unlike pictures are to it (`spread_of_pictures`)."""

    blocks: Tensor
    spread: Tensor


@dataclass(frozen=True)
class DrawBlocks:
    """A sample's blocks, {"ijepa_targets": int64 [M, P], "ijepa_context": int64 [K]}, by its slot in the step."""

    grid: Grid
    settings: IjepaConfig

    def __call__(self, place: Place) -> dict[str, NDArray[Any]]:
        step = place.position // place.global_batch
        targets, context = _blocks_of_step(self, place.seed, place.epoch, step, place.global_batch)
        return {"ijepa_targets": targets[place.slot], "ijepa_context": context[place.slot]}


@lru_cache(maxsize=2)
def _blocks_of_step(draw: DrawBlocks, seed: int, epoch: int, step: int, pictures: int) -> Blocks:
    rng, c = Place(seed, epoch, 0, 0, step * pictures, pictures).step_rng(), draw.settings
    return draw_blocks(rng, draw.grid, pictures, c.targets, c.target_scale, c.target_aspect, c.context_scale, c.least)


def spread_of_pictures(features: Tensor) -> Tensor:
    """Standard deviation over pictures of the features [B, N, D] at one place, as the root of its mean square.

    Of normalised features about 1 at most; 0 says that all pictures get the same answer, one for each place or one for
    all. Of a single picture: the deviation over its places.
    """
    return features.var(0 if len(features) > 1 else 1, correction=0).mean().sqrt()


class Ijepa(Term):
    """No state."""

    looks = "none"
    asks_teacher = False

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        side, wide, c = config.crops.global_size // patch_size(backbone), width(backbone), config.ijepa
        draw = partial(nn.init.trunc_normal_, std=0.02)
        return {"predictor": partial(Predictor, wide, wide, (side, side), c.width, c.depth, c.heads, draw)}

    @staticmethod
    def student_only() -> frozenset[str]:
        return frozenset({"predictor"})

    @staticmethod
    def draw(config: Config, patch: int) -> DrawBlocks:
        side = config.crops.global_size // patch
        return DrawBlocks((side, side), config.ijepa)

    def targets(self, teacher: Network, seen: Seen | None, inputs: Inputs, rates: Rates) -> Targets:
        # the teacher's own look: the terms' common one is at both global views
        patches = tokens(teacher.backbone, inputs.views[0]).patches.flatten(1, 2).float()
        patches = F.layer_norm(patches, patches.shape[-1:])
        places = inputs.drawn["ijepa_targets"].flatten(1)
        blocks = patches.take_along_dim(places[..., None], 1)
        return Targets(blocks.unflatten(1, inputs.drawn["ijepa_targets"].shape[1:]), spread_of_pictures(patches))

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: Targets, rates: Rates) -> Tensor:
        keep, places = inputs.drawn["ijepa_context"], inputs.drawn["ijepa_targets"]
        _, context = visible_tokens(student.backbone, inputs.views[0], keep)
        count = places.shape[1]
        context, keep = (x.repeat_interleave(count, 0) for x in (context, keep))
        predicted = student.part("predictor")(context[:, :0], context, keep, places.flatten(0, 1))
        return F.smooth_l1_loss(predicted.float().unflatten(0, (-1, count)), targets.blocks)

    def health(self, targets: Targets, loss: Tensor) -> dict[str, float]:
        """target_spread: how unlike pictures are to the teacher, 0 to about 1."""
        return {"target_spread": targets.spread.item()}

    def rules(self) -> dict[str, Rule]:
        return {
            "targets-collapse": Rule(
                lambda row: row["target_spread"] < COLLAPSED,
                "the teacher says the same of every picture, so there is nothing to predict",
                "Lower optim.base_lr, raise teacher.momentum, or make ijepa.target_scale larger",
            )
        }
