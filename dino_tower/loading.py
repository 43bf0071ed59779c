"""A tower from a transformers directory or Hub id: its vision model, its image processor, its text half if any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BeitForMaskedImageModeling,
    BeitModel,
    ViTConfig,
    ViTMAEModel,
    ViTModel,
)
from transformers import logging as transformers_logging
from transformers.models.beit.modeling_beit import BeitPooler

from dino_tower.architectures import initialise
from dino_tower.dual import KIND as DUAL
from dino_tower.errors import ConfigError, unknown
from dino_tower.families import FAMILIES
from dino_tower.families.family import Model
from dino_tower.fused import FusedTower
from dino_tower.text_tower import KIND as ALIGNED

# Models of two halves: the vision half becomes the tower.
TWO_HALVES = ("clip", "siglip", "siglip2", DUAL, ALIGNED)
OTHER_CLASS = {"vit_mae": "vit"}  # families whose weights are read into a class of another one
WITHOUT_POOLER = ("vit", "deit")  # the pooler is no part of a tower, and often not in the file
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": None}
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
DRAWN_AS_DINO = (
    "dinov2", "dinov2_with_registers", "dinov3_vit", "siglip_vision_model", "clip_vision_model",
)  # fmt: skip
# What a ViTMAE's encoder shares with a ViT.
VIT_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
    "image_size", "patch_size", "num_channels", "qkv_bias",
)  # fmt: skip


@dataclass
class Loaded:
    """A vision model with its processor; `whole` is the model of pictures and texts that it is a half of, or None."""

    model: Model
    processor: Any
    whole: Model | None = None
    folder: str = ""


def dtype_of(dtype: str | torch.dtype) -> torch.dtype | None:
    """A dtype by name; None for "auto", which leaves what the file holds. Raises ConfigError."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return DTYPES[dtype]


def load_transformers(folder: str, name: str, dtype: torch.dtype | None, untrained: bool) -> Loaded:
    """Load a directory or Hub id; `untrained` draws the weights instead of reading them.

    dtype: None is what the file holds. Raises ConfigError, naming the tower as `name`, for whatever is wrong with it.
    """
    _check_files(folder, name)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            kind = config.model_type
            if kind not in FAMILIES and kind not in TWO_HALVES and kind not in OTHER_CLASS:
                choices = [*TWO_HALVES, *OTHER_CLASS, *(f for f in FAMILIES if " " not in f)]
                raise unknown("tower family", kind, choices, name)
            whole = _draw(config, dtype) if untrained else _read(folder, name, config, dtype)
            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # damaged directories are met with every kind of exception
        if "ignore_mismatched_sizes" in str(error):  # a setting of transformers, and no reason
            raise ConfigError(f"{name}: the weights have other shapes than its config.json says") from None
        raise ConfigError(f"{name}: cannot be loaded as a tower: {_one_line(error)}") from None
    if kind in TWO_HALVES:
        return Loaded(whole.vision_model, processor, whole, folder)
    return Loaded(whole, processor, None, folder)


def _check_files(folder: str, name: str) -> None:
    """Say plainly what a local directory lacks."""
    path = Path(folder)
    if not path.is_dir():
        return
    if not (path / "config.json").is_file():
        raise ConfigError(f"{name}: no tower: it has neither a config.json (transformers) nor checkpoints (a run)")
    if '"pretrained_cfg"' in (path / "config.json").read_text(errors="replace"):
        raise ConfigError(f"{name}: a directory in timm's format; write timm:{folder}")
    if not any((path / file).is_file() for file in PROCESSOR_FILES):
        raise ConfigError(
            f"{name}: no image processor ({PROCESSOR_FILES[0]}); save it beside the model, or export again"
        )


def _read(folder: str, name: str, config: Any, dtype: torch.dtype | None) -> Model:
    kind = config.model_type
    if kind == "vit_mae":
        masked, info = _pretrained(ViTMAEModel, folder, dtype)
        model = _draw(config, masked.dtype)
        model.load_state_dict(masked.state_dict())
    elif kind == "beit":
        model, info = _read_beit(folder, config, dtype)
    elif kind in WITHOUT_POOLER:
        model, info = _pretrained(AutoModel, folder, dtype, add_pooling_layer=False)
    else:
        model, info = _pretrained(AutoModel, folder, dtype)
    if missing := sorted(key for key in info["missing_keys"] if not key.endswith("mask_token")):
        raise ConfigError(f"{name}: the weights lack {', '.join(missing[:3])}")
    if extra := _without_place(model, info["unexpected_keys"]):
        raise ConfigError(f"{name}: config.json has no place for the weights {', '.join(extra[:3])}")
    return model


def _pretrained(kind: Any, folder: str, dtype: torch.dtype | None, **options: Any) -> tuple[Model, dict[str, Any]]:
    """The model, and which weights were missing from the file or from the model."""
    return kind.from_pretrained(folder, dtype=dtype or "auto", output_loading_info=True, **options)


def _read_beit(folder: str, config: Any, dtype: torch.dtype | None) -> tuple[Model, dict[str, Any]]:
    """BEiT's pretraining class keeps the final norm outside of its BeitModel, whose config denies that there is one."""
    if config.architectures != ["BeitForMaskedImageModeling"] or not config.use_mean_pooling:
        return _pretrained(BeitModel, folder, dtype, add_pooling_layer=config.use_mean_pooling)
    whole, info = _pretrained(BeitForMaskedImageModeling, folder, dtype)
    model = whole.beit
    model.pooler = BeitPooler(config)
    model.pooler.layernorm = whole.layernorm
    return model, info


def _draw(config: Any, dtype: torch.dtype | None) -> Model:
    """The same architecture with fresh weights."""
    kind = config.model_type
    if kind == "vit_mae":
        shared = {field: getattr(config, field) for field in VIT_FIELDS}
        model: Model = ViTModel(ViTConfig(**shared), add_pooling_layer=False)
    elif kind in WITHOUT_POOLER:
        model = AutoModel.from_config(config, add_pooling_layer=False)
    else:
        model = AutoModel.from_config(config)
    vision = model.vision_model if kind in TWO_HALVES else model
    encoders: list[Any] = list(vision.members) if isinstance(vision, FusedTower) else [vision]
    for encoder in encoders:
        if encoder.config.model_type in DRAWN_AS_DINO:
            initialise(encoder)
    return model.to(dtype) if dtype else model


def _without_place(model: Model, unexpected: list[str]) -> list[str]:
    """Weights that belong inside the encoder and were dropped: more layers than the config says, say. Heads may go."""
    children = {child for child, _ in model.named_children()}
    prefix = f"{model.base_model_prefix}."
    inside = [key for key in unexpected if key.removeprefix(prefix).split(".")[0] in children]
    return sorted(key for key in inside if not key.endswith(("mask_token", "position_ids")))


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar, and no report about heads that a tower has no use for."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    offline = "couldn't connect" in text or "Cannot send a request" in text
    return "it is not on this machine, and the Hub cannot be reached" if offline else text
