"""CLIP: of all captions of a batch, a picture finds its own, and a caption its picture (Radford et al. 2021, figure 3).

B pictures of this process with a caption each, v views of a picture, E features that both are compared in. With
`clip.loss siglip` each pair is judged by itself (Zhai et al. 2023, algorithm 1). `dino_tower.dual` has the text tower,
`dino_tower.contrast` the losses.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from dino_tower.alarms import Rule
from dino_tower.bpe import learn_merges
from dino_tower.contrast import contrast
from dino_tower.dual import PART, TextSide, side_of
from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.pretrain.objectives.spread import alike_rule, spread
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term, first_views
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.tokens import width

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network

LOOKED_AT = 64  # pictures, before it is said that there are no captions


class Clip(Term):
    """No state. The teacher has a text tower of its own, the average of the student's. The batch is that of all
    processes; micro-batches of an accumulated step do not see each other."""

    looks = "none"  # a single view is less than what others look at; what they have seen is taken all the same
    asks_teacher = False
    reads_captions = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.kind, self.views = config.clip.loss, config.clip.views
        self.side: tuple[TextSide, ...] = ()  # of the student; in a tuple, so not among the modules that are saved
        self.noted: dict[str, Tensor] = {}

    @staticmethod
    def one_view(config: Config) -> bool:
        return config.clip.views == 1

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        clip = config.clip

        def make() -> TextSide:
            texts = [] if source is None else captions_of(source, clip.read, clip.captions == "any")
            return side_of(width(backbone), asdict(clip), learn_merges(texts, clip.vocabulary))

        return {PART: make}

    @staticmethod
    def check_source(config: Config, source: Source) -> None:
        if not captions_of(source, LOOKED_AT, config.clip.captions == "any"):
            raise ConfigError(
                f"--data {source.name!r}: terms.clip learns from captions, and none of {min(LOOKED_AT, len(source))} "
                "pictures looked at has one; name their column with --source.caption, or give a source that has them "
                "(.csv, hf:, tar:, scenes)"
            )

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: None, rates: Rates) -> Tensor:
        side: TextSide = student.part(PART)
        images = F.normalize(side.pictures(first_views(student, seen, inputs, self.views)).float(), dim=-1)
        texts = F.normalize(side.texts(inputs.captions).float(), dim=-1)
        rank, world = (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)
        own = torch.eye(world * len(texts), dtype=torch.bool, device=texts.device)
        losses = [contrast(self.kind, view, texts, side.logit_scale.exp(), side.bias, own, rank) for view in images]
        nearest = (images.detach() @ texts.detach().T).argmax(-1)
        self.side = (side,)
        self.noted = {
            "clip_accuracy": (nearest == torch.arange(len(texts), device=texts.device)).float().mean(),
            "clip_spread": spread(images),
            "clip_scale": side.logit_scale.detach().exp()[0],
        }
        return torch.stack(losses).mean()

    def commit(self) -> None:
        for side in self.side:
            side.bound_scale()

    def health(self, targets: None, loss: Tensor) -> dict[str, float]:
        """clip_accuracy: share of the pictures whose own caption is the nearest of this process's. clip_spread: of the
        pictures. clip_scale: what cosines are multiplied with."""
        return {name: value.item() for name, value in self.noted.items()}

    def rules(self) -> dict[str, Rule]:
        return alike_rule("clip", "every picture", "Lower optim.base_lr, or raise --batch-size and optim.warmup_epochs")


def captions_of(source: Source, count: int, every_text: bool) -> list[str]:
    """What is said of up to `count` pictures, evenly spread: their captions, or all texts; unreadable ones left out."""
    found: list[str] = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist():
        try:
            sample = source[index]
            found += sample.texts if every_text else [sample.caption or ""]
        except UnreadableImage:
            continue
    return [text for text in found if text]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
