"""DINO: the student says about each view what the teacher says about another view of the same picture.

V views (the two global ones first) of B images, K prototypes. DINO, section 3.1; losses.py has the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dino_tower.alarms import Rule, collapse_rules
from dino_tower.pretrain.algorithms.centre import Centre
from dino_tower.pretrain.algorithms.heads import DinoHead, Prototypes
from dino_tower.pretrain.algorithms.losses import dino_loss
from dino_tower.pretrain.algorithms.sinkhorn import SinkhornTargets
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.tokens import width

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network


def head(config: Config, backbone: PreTrainedModel) -> Parts:
    """The projection head of the class token."""
    c = config.head
    rest = (c.norm_last_layer, c.batch_norm, c.weight_norm)
    return {"head": partial(DinoHead, width(backbone), c.prototypes, c.hidden, c.bottleneck, *rest)}


def centring(config: Config, prototypes: int) -> Centre | SinkhornTargets:
    """What turns the teacher's logits into targets, with the state it needs."""
    made: dict[str, Callable[[], Centre | SinkhornTargets]] = {
        "centre": partial(Centre, prototypes, config.loss.centre_momentum),
        "sinkhorn": SinkhornTargets,
    }
    return made[config.loss.centring]()


def rows_of(layer: Prototypes, frozen: bool) -> tuple[Tensor, Tensor | None]:
    """Weight [K, d] and gain [K, 1], if any, of the prototypes, without gradient while they do not move."""
    weight, gain = layer.weight_v, layer.weight_g
    return (weight.detach(), None if gain is None else gain.detach()) if frozen else (weight, gain)


@torch.no_grad()
def sharpness(targets: Tensor, of: str = "") -> dict[str, float]:
    """How the teacher's probabilities [..., K] are spread; the names start with `of`.

    entropy: mean over rows, nats, at most ln K. usage_entropy: of the mean target; prototypes_used: its exponential.
    """
    rows = targets.flatten(0, -2)
    entropy = torch.special.entr(rows).sum(-1).mean()
    usage = torch.special.entr(rows.mean(0)).sum()
    numbers = {"entropy": entropy.item(), "usage_entropy": usage.item(), "prototypes_used": usage.exp().item()}
    return {f"{of}{name}": number for name, number in numbers.items()}


class Dino(Term):
    """State: `centre`, unless Sinkhorn-Knopp is in its place."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.temperature, self.prototypes = config.loss.student_temp, config.head.prototypes
        self.centre = centring(config, config.head.prototypes)

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        return head(config, backbone)

    def targets(self, teacher: Network, seen: Seen | None, inputs: Inputs, rates: Rates) -> Tensor:
        """Probabilities [2, B, K] of the two global views."""
        assert seen is not None
        head = teacher.part("head")
        # in one call, so that a batch norm there sees both views together as in the reference
        logits = head(seen.pooled.flatten(0, 1)).unflatten(0, (2, -1))
        targets = self.centre.targets(logits, rates.teacher_temp)
        self.centre.observe(logits)
        return targets

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: Tensor, rates: Rates) -> Tensor:
        assert seen is not None
        head = student.part("head")
        z = head.project(seen.pooled.flatten(0, 1)).unflatten(0, seen.pooled.shape[:2])
        weight, gain = rows_of(head.last_layer, rates.frozen)
        return dino_loss(z, weight, targets, self.temperature, gain)

    def commit(self) -> None:
        self.centre.commit()

    def forget(self) -> None:
        self.centre.forget()

    def health(self, targets: Tensor, loss: Tensor) -> dict[str, float]:
        """Beside the targets' sharpness, kl: loss less entropy, what the student has still to learn of the teacher;
        centre_norm: L2."""
        row = sharpness(targets)
        row["kl"] = (loss - row["entropy"]).item()
        return row | ({"centre_norm": self.centre.centre.norm().item()} if isinstance(self.centre, Centre) else {})

    def rules(self) -> dict[str, Rule]:
        return collapse_rules(self.prototypes)
