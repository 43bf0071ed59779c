"""What learns in each stage: requires_grad set, adapters put in, and taken in at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
from torch import nn

from dino_tower.adapters.vlm.assemble import PROJECTOR
from dino_tower.adapters.vlm.trainable import freeze_unreached, tower_of
from dino_tower.adapters.vlm_settings import Config
from dino_tower.peft_adapter import wrap
from dino_tower.peft_methods import METHODS


@dataclass(frozen=True)
class Learners:
    """What learns. counts: weights by part; merge: takes adapters into the weights below them."""

    vlm: Any
    counts: dict[str, int]
    merge: Callable[[], None]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {count:,}" for name, count in self.counts.items() if count)
        return f"weights that learn: {parts}"


def learners_of_stage_1(vlm: Any, config: Config) -> Learners:
    """The projector alone."""
    vlm.requires_grad_(False)
    getattr(vlm.model, PROJECTOR).requires_grad_(True)
    in_full_precision(vlm, config)
    return Learners(vlm, counts(vlm), lambda: None)


def learners_of_stage_2(vlm: Any, config: Config) -> Learners:
    """The projector, the language model (LoRA, all of it, or nothing), and the tower by `config.method`.

    Adapters are put into the modules in place. Raises ConfigError for a method that does not fit the tower.
    """
    vlm.requires_grad_(False)
    merges: list[Callable[[], object]] = []
    tower = tower_of(vlm)
    if config.method in METHODS:
        merges.append(wrap(tower, config.method, config.peft, config.seed).merge_and_unload)
    elif config.method == "full":
        tower.requires_grad_(True)
    freeze_unreached(vlm)
    language = config.language
    if language.method == "lora":
        settings = peft.LoraConfig(
            r=language.rank, lora_alpha=language.alpha, lora_dropout=language.dropout, target_modules="all-linear"
        )
        adapted: Any = peft.get_peft_model(vlm.model.language_model, settings)
        merges.append(adapted.merge_and_unload)
    elif language.method == "full":
        vlm.model.language_model.requires_grad_(True)
        vlm.lm_head.requires_grad_(True)
    getattr(vlm.model, PROJECTOR).requires_grad_(True)
    in_full_precision(vlm, config)

    def merge() -> None:
        for one in merges:
            one()

    return Learners(vlm, counts(vlm), merge)


def in_full_precision(vlm: Any, config: Config) -> None:
    """Under autocast what learns is kept in fp32: steps of 1e-4 are lost in the rounding of bf16."""
    if config.compute.precision != "no":
        for parameter in vlm.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def counts(vlm: Any) -> dict[str, int]:
    """Weights that learn, by part."""
    parts: dict[str, nn.Module] = {
        "projector": getattr(vlm.model, PROJECTOR),
        "language model": vlm.model.language_model,
        "head": vlm.lm_head,
        "tower": tower_of(vlm),
    }
    return {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()}
