"""I-JEPA: from a part of a picture, predict what the teacher makes of other parts (Assran et al., arXiv 2301.08243).

B pictures of h x w patches, K of these context, M target blocks of P patches each, D features.

    target     = LayerNorm(teacher(whole picture)) at the patches of each block       no scale, no shift
    prediction = predictor(student(context patches alone), places of the block)       one pass for each block
    L = mean over blocks, patches and features of smooth-L1(prediction, target)

The student does not see the targets, the teacher sees the whole picture, and no pixels are painted. One view is learned
from, the first global one; the second and the local ones are left alone, and colours want no changes
(presets/ijepa_cpu.yaml). Class tokens and registers, which the authors' networks do not have, help the student's blocks
and are not handed to the predictor, so no loss asks what a class token says: take a class without one (_siglip), or
read the mean of the patches. A teacher that follows too fast collapses, rather into one direction than into one point,
so the log has the targets' rank beside their spread. The teacher's momentum follows the loop's cosine, the authors' a
straight line. multiblock.py has the blocks. References: ijepa/src/train.py, src/models/vision_transformer.py.
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
from dino_tower.pretrain.algorithms.multiblock import Blocks, Grid, draw_blocks
from dino_tower.pretrain.loading.draws import Place
from dino_tower.pretrain.network.predictor import Predictor
from dino_tower.pretrain.network.visible import visible_tokens
from dino_tower.pretrain.objectives.masked_settings import IjepaConfig
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.tokens import patch_size, tokens, width

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network

LEAST_SPREAD, LEAST_RANK = 0.05, 1.5  # below which targets have collapsed


class Targets(NamedTuple):
    """What the teacher says."""

    blocks: Tensor
    """Of the blocks [B, M, P, D]."""
    patches: Tensor
    """Of the whole pictures [B, h w, D]."""


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


def variety(features: Tensor) -> tuple[Tensor, Tensor]:
    """Spread and rank of features [B, N, D]: how unlike pictures are at one place, and in how many directions.

    Spread: standard deviation over pictures, the root of its mean square; of normalised features 1 at most. 0 says that
    all pictures get the same answer, one for each place or one for all. Rank: participation ratio (tr C)^2 / tr C^2 of
    the deviations' covariance C, 1 to D; 1 says that they tell one thing only. Of a single picture: over its places.
    """
    deviations = (features - features.mean(0 if len(features) > 1 else 1, keepdim=True)).flatten(0, 1).float()
    covariance = deviations.T @ deviations / len(deviations)
    trace = covariance.trace()
    rank = trace.square() / covariance.square().sum().clamp(min=1e-12)
    return (trace / len(covariance)).sqrt(), rank


class Ijepa(Term):
    """No state."""

    looks = "none"
    asks_teacher = False

    @staticmethod
    def one_view(config: Config) -> bool:
        return True

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
        return Targets(blocks.unflatten(1, inputs.drawn["ijepa_targets"].shape[1:]), patches)

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: Targets, rates: Rates) -> Tensor:
        keep, places = inputs.drawn["ijepa_context"], inputs.drawn["ijepa_targets"]
        _, context = visible_tokens(student.backbone, inputs.views[0], keep)
        count = places.shape[1]
        context, keep = (x.repeat_interleave(count, 0) for x in (context, keep))
        predicted = student.part("predictor")(context[:, :0], context, keep, places.flatten(0, 1))
        return F.smooth_l1_loss(predicted.float().unflatten(0, (-1, count)), targets.blocks)

    def health(self, targets: Targets, loss: Tensor) -> dict[str, float]:
        """How unlike pictures are to the teacher: target_spread, 0 to 1, and in how many directions: target_rank."""
        spread, rank = variety(targets.patches)
        return {"target_spread": spread.item(), "target_rank": rank.item()}

    def rules(self) -> dict[str, Rule]:
        remedy = "Lower optim.base_lr, raise teacher.momentum, or make ijepa.target_scale larger"
        return {
            "targets-collapse": Rule(
                lambda row: row["target_spread"] < LEAST_SPREAD,
                "the teacher says the same of every picture, so there is nothing to predict",
                remedy,
            ),
            "targets-collapse-to-one-direction": Rule(
                lambda row: row["target_rank"] < LEAST_RANK,
                "the teacher tells pictures apart in one direction only",
                remedy,
            ),
        }
