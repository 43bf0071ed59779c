"""An adapter in a tower that stays as it is: the student is the tower with it, the teacher the same tower with the
moving average of it. The tower's own weights are held once, whatever number of networks looks through them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from dino_tower.checkpoint import load_tensors
from dino_tower.errors import ConfigError
from dino_tower.families import family_name
from dino_tower.images import IMAGENET_MEAN, IMAGENET_STD
from dino_tower.loading import Loaded
from dino_tower.peft_adapter import (
    WEIGHTS,
    Base,
    adapter_writer,
    base_path,
    load_adapter_weights,
    read_base,
    weights_digest,
    wrap,
)
from dino_tower.peft_methods import PeftSettings
from dino_tower.positions import rescale_at_random
from dino_tower.pretrain.objectives.objective import hides
from dino_tower.pretrain.settings import Config
from dino_tower.tokens import patch_size
from dino_tower.towers import open_tower

DROPPING = ("drop_prob", "dropout", "attention_dropout", "dropout_prob")  # what attention and dropped paths call theirs
MASKED = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # classes that can hide patches from themselves


@dataclass(frozen=True)
class Adapter:
    """Of one network. peft: the wrapper around its backbone. base: the tower that the backbone was without it."""

    peft: PeftModel
    base: Base

    def writer(self) -> Callable[[Path], None]:
        """Copies the adapter now; the returned function writes it into a folder, beside the name of its base."""
        return adapter_writer(self.peft, self.base)

    def check_base(self, folder: Path) -> None:
        """Raise ConfigError where `writer` wrote there the adapter of another base."""
        if read_base(folder).digest != self.base.digest:
            raise ConfigError(
                f"{folder}: an adapter for another base: the weights of {self.base.tower} are not those that the run "
                "was started with; put that tower back, or start a new run"
            )

    def load(self, folder: Path) -> None:
        """What `writer` wrote. Raises ConfigError for damaged files."""
        load_adapter_weights(self.peft, load_tensors(folder / WEIGHTS), folder / WEIGHTS)


def open_base(config: Config) -> PreTrainedModel:
    """The tower of `init_from`, float32, in evaluation mode. Raises ConfigError for one that cannot be adapted here."""
    name = str(config.init_from)
    loaded = open_tower(name, torch.float32)
    model = loaded.model
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"init_from {name}: self-distillation takes towers of transformers, and this is a {family_name(model)}; "
            f"write it as one with `dino-tower convert`"
        )
    _check_fit(config, loaded)
    _quiet(model)
    # Evaluation mode, but for blocks that recompute: they do so in training mode only.
    return model.train(config.compute.activation_checkpointing)


def _quiet(model: PreTrainedModel) -> None:
    """Switch off what a tower may do in training mode: the adapter is trained in the tower that is served."""
    modules: list[Any] = [*model.modules()]
    for module in modules:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for key in DROPPING:
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, 0.0)
    if hasattr(model, "rope_embeddings"):
        rescale_at_random(model, None)


def untrained(config: Config) -> PreTrainedModel:
    """The architecture of the tower with random weights, drawn the same every time."""
    model: PreTrainedModel = open_tower(f"random:{str(config.init_from).removeprefix('random:')}", torch.float32).model
    return model


def adapt(backbone: PreTrainedModel, config: Config) -> Adapter:
    """Put a fresh adapter into a backbone, which only it is trained of from then on. Raises ConfigError."""
    name, lora = str(config.init_from), config.lora
    base = Base(name, base_path(name), weights_digest(backbone), lora.method)
    settings = PeftSettings(rank=lora.rank, alpha=lora.alpha, modules=lora.modules)
    try:
        return Adapter(wrap(backbone, lora.method, settings, config.seed), base)
    except ConfigError as error:
        raise ConfigError(str(error).replace("peft.", "lora.")) from None


def look_alike(backbone: PreTrainedModel) -> PreTrainedModel:
    """Another module over the same weights, to look with in another mode; no memory but for its buffers."""
    return copy.deepcopy(backbone, {id(p): p for p in backbone.parameters()})


def _check_fit(config: Config, loaded: Loaded) -> None:
    """Views that the tower can take, normalised as it knows them, and tokens that the objective needs."""
    name, patch, pixels = config.init_from, patch_size(loaded.model), config.pixels
    sides = {"global_size": config.crops.global_size} | (
        {"local_size": config.crops.local_size} if config.crops.locals else {}
    )
    for key, side in sides.items():
        if side % patch:
            raise ConfigError(f"crops.{key} {side} is not a multiple of the patch size {patch} of {name}")
    knows = [float(v) for v in (*loaded.processor.image_mean, *loaded.processor.image_std)]
    given = [*(pixels.mean or IMAGENET_MEAN), *(pixels.std or IMAGENET_STD)]
    if pixels.measure or any(abs(a - b) > 1e-6 for a, b in zip(knows, given, strict=True)):
        mean, std = (" ".join(f"{v:.7g}" for v in part) for part in (knows[:3], knows[3:]))
        raise ConfigError(
            f"pixels: {name} knows pixels by another mean and std: set --pixels.mean {mean} --pixels.std {std} "
            "--pixels.measure false"
        )
    if hides(config) and family_name(loaded.model) not in MASKED:
        raise ConfigError(
            f"objective {config.objective} hides patches, and a {family_name(loaded.model)} has no mask token: "
            "take --objective dino"
        )
