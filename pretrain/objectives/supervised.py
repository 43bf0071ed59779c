"""Labels: a linear classifier on the class token, its cross-entropy smoothed, as ViTs are trained (DeiT, section 5).

B pictures of this process, v views of each, C classes, D features. DeiT's mixing of pictures and its distillation are
not here: pictures are those of the crops.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.alarms import Rule
from dino_tower.errors import ConfigError
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term, first_views
from dino_tower.pretrain.settings import Config
from dino_tower.sources import NO_LABEL, Source
from dino_tower.tokens import width

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network


class Supervised(Term):
    """No state. Pictures without a label teach nothing; all others of a batch count the same, on whichever process."""

    looks = "none"  # as in clip.py
    asks_teacher = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.smoothing, self.views = config.supervised.smoothing, config.supervised.views
        self.noted: dict[str, Tensor] = {}

    @staticmethod
    def one_view(config: Config) -> bool:
        return config.supervised.views == 1

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        classes = len(source.classes or ()) if source is not None else 0
        return {"classifier": partial(_classifier, width(backbone), max(1, classes))}

    @staticmethod
    def student_only() -> frozenset[str]:
        return frozenset({"classifier"})

    @staticmethod
    def check_source(config: Config, source: Source) -> None:
        labels = source.labels()
        if labels is None or not source.classes or not (labels != NO_LABEL).any():
            raise ConfigError(
                f"--data {source.name!r}: terms.supervised learns from labels and there are none; put the pictures "
                "into one folder for each class, name their column with --source.label, or take --objective dino"
            )
        if len(source.classes) < 2:
            raise ConfigError(
                f"--data {source.name!r}: terms.supervised needs two classes to tell apart; all pictures are of one, "
                f"{source.classes[0]!r}"
            )

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: None, rates: Rates) -> Tensor:
        pooled = first_views(student, seen, inputs, self.views)
        logits = student.part("classifier")(pooled).float()
        labels = inputs.labels.expand(len(logits), -1)
        loss, labelled = labelled_mean(logits.flatten(0, 1), labels.flatten(), self.smoothing)
        known = labels != NO_LABEL
        right = ((logits.detach().argmax(-1) == labels) & known).sum() / known.sum().clamp(min=1)
        self.noted = {
            "supervised_accuracy": right,
            "supervised_information": information(logits),
            "supervised_labelled": labelled,
        }
        return loss

    def health(self, targets: None, loss: Tensor) -> dict[str, float]:
        """supervised_accuracy: of the labelled pictures trained on. supervised_information: nats that an answer tells
        of its picture. supervised_labelled: share of the pictures that have a label."""
        return {name: value.item() for name, value in self.noted.items()}

    def rules(self) -> dict[str, Rule]:
        return {
            "supervised-one-answer": Rule(
                lambda row: row["supervised_information"] < 0.01,
                "the classifier gives every picture the same answer",
                "Lower optim.base_lr or raise optim.warmup_epochs; see whether the labels say what the pictures show",
            )
        }


def labelled_mean(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [B, C] to labels [B], meaned over the labelled ones of all processes, and their share.

    Times the number of processes: after the mean over processes it is that of the joint batch. 0 without a label.
    """
    total = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, label_smoothing=smoothing, reduction="sum")
    count = (labels != NO_LABEL).sum().float()
    world = 1
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        dist.all_reduce(count)
    return total * world / count.clamp(min=1), count / (world * len(labels))


@torch.no_grad()
def information(logits: Tensor) -> Tensor:
    """Entropy of the mean answer less the mean entropy of answers [..., C], nats: 0 where all are the same."""
    answers = logits.float().flatten(0, -2).softmax(-1)
    return torch.special.entr(answers.mean(0)).sum() - torch.special.entr(answers).sum(-1).mean()


def _classifier(features: int, classes: int) -> nn.Linear:
    """Drawn as DeiT draws its own."""
    layer = nn.Linear(features, classes)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
