"""The sum of terms that a run minimises, from the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.alarms import Rule
from dino_tower.peft_adapter import weights_digest
from dino_tower.pretrain.loading.data import Beside
from dino_tower.pretrain.objectives.clip import Clip
from dino_tower.pretrain.objectives.dino import Dino
from dino_tower.pretrain.objectives.distil import Distil
from dino_tower.pretrain.objectives.distil_head import DistilHead
from dino_tower.pretrain.objectives.gram import Gram
from dino_tower.pretrain.objectives.ibot import Ibot
from dino_tower.pretrain.objectives.ijepa import Ijepa
from dino_tower.pretrain.objectives.koleo import Koleo
from dino_tower.pretrain.objectives.mae import Mae
from dino_tower.pretrain.objectives.settings import weights
from dino_tower.pretrain.objectives.simclr import Simclr
from dino_tower.pretrain.objectives.supervised import Supervised
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Term
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network

# A name is also a setting: TermsConfig has its weight, and its parts are made in this order.
TERMS: dict[str, type[Term]] = {
    "dino": Dino,
    "ibot": Ibot,
    "koleo": Koleo,
    "distil": Distil,
    "distil_head": DistilHead,
    "gram": Gram,
    "mae": Mae,
    "ijepa": Ijepa,
    "clip": Clip,
    "simclr": Simclr,
    "supervised": Supervised,
}

Losses = dict[str, Tensor]  # "loss" and, by name, the terms it is the weighted sum of


class Objective(nn.Module):
    """Terms by name, their weights, and what they together want to look at."""

    def __init__(self, terms: Mapping[str, Term], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.terms, self.weights = nn.ModuleDict(terms), dict(weights)
        self.student_looks = {term.looks for term in terms.values()} - {"none"}
        self.teacher_looks = any(term.asks_teacher for term in terms.values())
        self.patches = any(term.reads_patches for term in terms.values())

    def named(self) -> dict[str, Any]:
        """Name -> Term."""
        return dict(self.terms.items())

    @torch.no_grad()
    def targets(self, teacher: Network, inputs: Inputs, rates: Rates) -> dict[str, Any]:
        """What the teacher says, for each term; notes what the terms' states will move by."""
        seen = teacher.see(inputs.views[:2], patches=self.patches) if self.teacher_looks else None
        return {name: term.targets(teacher, seen, inputs, rates) for name, term in self.named().items()}

    def losses(self, student: Network, inputs: Inputs, targets: Mapping[str, Any], rates: Rates) -> Losses:
        """The scalar `loss` and, without gradient, its terms."""
        seen = None
        if self.student_looks:
            views = inputs.views if "all" in self.student_looks else inputs.views[:2]
            seen = student.see(views, inputs.masks, self.patches)
        each = {name: term.loss(student, seen, inputs, targets[name], rates) for name, term in self.named().items()}
        total = torch.stack([self.weights[name] * loss for name, loss in each.items()]).sum()
        return {"loss": total, **{name: loss.detach() for name, loss in each.items()}}

    def commit(self) -> None:
        """The step was good: every term's state moves."""
        for term in self.named().values():
            term.commit()

    def forget(self) -> None:
        """The step was not: every term drops what it noted."""
        for term in self.named().values():
            term.forget()

    def health(self, targets: Mapping[str, Any], losses: Losses) -> dict[str, float]:
        """A row for the log: the loss, each of several terms as NAME_loss, and what the terms say of themselves."""
        row = {"loss": losses["loss"].item()}
        for name, term in self.named().items():
            row |= {f"{name}_loss": losses[name].item()} if len(self.terms) > 1 else {}
            row |= term.health(targets[name], losses[name])
        return row

    def rules(self) -> dict[str, Rule]:
        """All terms' alarms."""
        return {name: rule for term in self.named().values() for name, rule in term.rules().items()}

    @cached_property
    def teachers(self) -> dict[str, list[str]]:
        """Term -> a digest of each frozen network that it learns from; a run and its continuation have the same."""
        found = {name: [weights_digest(one) for one in term.frozen_networks()] for name, term in self.named().items()}
        return {name: digests for name, digests in found.items() if digests}

    def states(self) -> dict[str, nn.Module]:
        """The modules that hold the terms' states, by the names that a checkpoint has them under."""
        return {name: module for term in self.named().values() for name, module in term.named_children()}


def make_objective(config: Config) -> Objective:
    """The objective of a run, on the CPU."""
    chosen = weights(config)
    return Objective({name: TERMS[name](config) for name in TERMS if name in chosen}, chosen)


def parts_of(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
    """What the networks of a run need beside the backbone, in the order in which it is made."""
    chosen = weights(config)
    return {k: v for name in TERMS if name in chosen for k, v in TERMS[name].parts(config, backbone, source).items()}


def hides(config: Config) -> bool:
    """Whether the mask token is trained."""
    return any(TERMS[name].hides for name in weights(config))


def student_only(config: Config) -> frozenset[str]:
    """The parts that the teacher does without."""
    return frozenset().union(*(TERMS[name].student_only() for name in weights(config)))


def views_read(config: Config) -> int | None:
    """How many views are to be cut, the first ones; None: all."""
    return 1 if all(TERMS[name].one_view(config) for name in weights(config)) else None


def beside(config: Config, patch: int) -> Beside:
    """What the loader is to bring beside the views."""
    chosen = [TERMS[name] for name in weights(config)]
    draws = (term.draw(config, patch) for term in chosen)
    captions = config.clip.captions if any(term.reads_captions for term in chosen) else "none"
    return Beside(tuple(draw for draw in draws if draw is not None), captions)


def check_source(config: Config, source: Source) -> None:
    """Raise ConfigError for data that a term of the objective cannot learn from."""
    for name in weights(config):
        TERMS[name].check_source(config, source)


def mean_of(losses: Sequence[Losses]) -> Losses:
    """Over the micro-batches of a step."""
    return {name: torch.stack([one[name].detach() for one in losses]).mean() for name in losses[0]}
