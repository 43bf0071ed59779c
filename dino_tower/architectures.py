"""Trainable vision models by name, each a native transformers class: what is trained is what is shipped.

A name is `vit{t,s,b,l}{patch}` with an optional class behind it, as in `vits16`, `vitb14_reg4`, `vits16_siglip`; or a
ResNet. A plain DINO ViT is a `Dinov2Model` whose LayerScale is fixed at 1.

Weights are initialised as DINO does (vision_transformer.py::_init_weights): truncated normal 0.02 for linear layers,
position table and tokens, zero biases, and PyTorch's default for the patch embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dino_tower.errors import ConfigError, unknown

EPS = 1e-6  # LayerNorm; several of the config classes default to another value


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of a ViT; image size and patch in pixels; whether its MLPs are SwiGLU."""

    width: int
    depth: int
    heads: int
    image_size: int
    patch: int
    swiglu: bool = False


def _plain(size: Size, layerscale: float, drop_path: float) -> PreTrainedModel:
    return Dinov2Model(Dinov2Config(**_dinov2(size, layerscale, drop_path)))


def _registers(size: Size, layerscale: float, drop_path: float) -> PreTrainedModel:
    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**_dinov2(size, layerscale, drop_path), num_register_tokens=4)
    )


def _rope(size: Size, layerscale: float, drop_path: float, registers: int = 0) -> PreTrainedModel:
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            **_common(size),
            intermediate_size=4 * size.width,
            layerscale_value=layerscale,
            drop_path_rate=drop_path,
            pos_embed_rescale=None,  # its default jitters positions whenever a client trains the tower
            num_register_tokens=registers,
        )
    )


def _rope_registers(size: Size, layerscale: float, drop_path: float) -> PreTrainedModel:
    return _rope(size, layerscale, drop_path, registers=4)


def _siglip(size: Size, layerscale: float, drop_path: float) -> PreTrainedModel:
    config = SiglipVisionConfig(
        **_common(size), intermediate_size=4 * size.width, hidden_act="gelu", vision_use_head=False
    )
    return SiglipVisionModel(config)


def _clip(size: Size, layerscale: float, drop_path: float) -> PreTrainedModel:
    config = CLIPVisionConfig(**_common(size), intermediate_size=4 * size.width, hidden_act="gelu")
    return CLIPVisionModel(config)


def _common(size: Size) -> dict[str, Any]:
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "image_size": size.image_size,
        "patch_size": size.patch,
        "layer_norm_eps": EPS,
    }


def _dinov2(size: Size, layerscale: float, drop_path: float) -> dict[str, Any]:
    return {**_common(size), "mlp_ratio": 4, "layerscale_value": layerscale, "drop_path_rate": drop_path,
            "use_swiglu_ffn": size.swiglu}  # fmt: skip


SIZES = {"t": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}  # width, depth, heads
PATCHES = (8, 14, 16)
CLASSES: dict[str, Callable[[Size, float, float], PreTrainedModel]] = {
    "": _plain,
    "_reg4": _registers,
    "_rope": _rope,
    "_rope_reg4": _rope_registers,
    "_siglip": _siglip,
    "_clip": _clip,
}
NO_DROP_PATH = ("_siglip", "_clip")
WITH_SWIGLU = ("", "_reg4")
RESNETS: dict[str, dict[str, Any]] = {
    # three stages with a total stride of 16, for small pictures on small machines
    "resnet8": {"hidden_sizes": (64, 128, 256), "depths": (1, 1, 1), "layer_type": "basic"},
    "resnet18": {"hidden_sizes": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "layer_type": "basic"},
    "resnet50": {},
}


def names() -> list[str]:
    """Every architecture that `build` knows."""
    return [f"vit{s}{p}{c}" for c in CLASSES for s in SIZES for p in PATCHES] + list(RESNETS)


def build(
    arch: str,
    *,
    image_size: int,
    drop_path: float = 0.0,
    layerscale: float = 1.0,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    uniform_drop_path: bool = False,
    swiglu: bool = False,
    mask_token: bool = False,
    token_std: float = 0.02,
) -> PreTrainedModel:
    """A freshly initialised backbone, drawing from torch's global random state.

    arch: a name of `names()`. image_size: pixels, the native size of the position table (the global crop).
    drop_path: rate of the last block; the others rise to it linearly, as DINO has it (transformers has one rate).
    layerscale: initial value; exactly 1 means no LayerScale, and its parameters are frozen.
    width, depth, heads: override the named size (for a ResNet, `width` is the width of the first stage).
    uniform_drop_path: the same rate for every block instead; swiglu: gated MLPs; token_std: of the class token and
    the registers (DINOv2: 1e-6). mask_token: it is to be trained.
    Raises ConfigError for an unknown name or sizes that do not fit.
    """
    if arch in RESNETS:
        if swiglu:
            raise ConfigError(f"{arch} has no MLPs to gate; set --model.swiglu false")
        return _build_resnet(arch, width, depth, heads, drop_path)
    match = re.fullmatch(r"vit([a-z]+)(\d+)((?:_\w+)?)", arch)
    if arch not in names() or not match:
        patches, kinds = ",".join(map(str, PATCHES)), ", ".join(filter(None, CLASSES))
        listed = f"vit{{{','.join(SIZES)}}}{{{patches}}}, bare or with {kinds}; {', '.join(RESNETS)}"
        raise unknown("architecture", arch, names(), listed=listed)
    base, patch, family = SIZES[match[1]], int(match[2]), match[3]
    size = Size(width or base[0], depth or base[1], heads or base[2], image_size, patch, swiglu)
    if image_size % patch:
        raise ConfigError(f"image size {image_size} is not a multiple of the patch size {patch} of {arch}")
    if size.width % size.heads:
        raise ConfigError(f"model.width {size.width} does not divide into model.heads {size.heads}")
    if drop_path and family in NO_DROP_PATH:
        raise ConfigError(f"{arch} has no drop path in transformers; set --model.drop-path 0")
    if swiglu and family not in WITH_SWIGLU:
        raise ConfigError(f"{arch} has no SwiGLU in transformers; set --model.swiglu false")
    model = CLASSES[family](size, layerscale, drop_path)
    initialise(model)
    if token_std != 0.02:
        for name, p in model.named_parameters():
            if name.endswith(("cls_token", "class_embedding", "register_tokens")):
                nn.init.normal_(p, std=token_std)
    if drop_path:
        _set_drop_path(model, drop_path if uniform_drop_path else 0.0, drop_path)
    _freeze_unused(model, layerscale, mask_token)
    return model


def _build_resnet(
    arch: str, width: int | None, depth: int | None, heads: int | None, drop_path: float
) -> PreTrainedModel:
    if heads or depth:
        raise ConfigError(f"{arch} has no model.heads and no model.depth; leave them out")
    if drop_path:
        raise ConfigError(f"{arch} has no drop path; set --model.drop-path 0")
    config = ResNetConfig(**RESNETS[arch])
    if width:
        scale = width / config.embedding_size
        config.embedding_size = width
        config.hidden_sizes = [round(c * scale) for c in config.hidden_sizes or ()]
    return ResNetModel(config)


@torch.no_grad()
def initialise(model: PreTrainedModel) -> None:
    """Draw a ViT's weights anew, as DINO's code does, whatever its transformers class does by default."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):  # CLIP and SigLIP keep their position table in one
            nn.init.trunc_normal_(module.weight, std=0.02)
    for name, p in model.named_parameters():
        if name.endswith(("cls_token", "class_embedding", "position_embeddings", "register_tokens")):
            nn.init.trunc_normal_(p, std=0.02)


def _set_drop_path(model: PreTrainedModel, first: float, last: float) -> None:
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "drop_path")]
    for layer, p in zip(layers, torch.linspace(first, last, len(layers), device="cpu").tolist(), strict=True):
        layer.drop_path.drop_prob = p
    model.config.drop_path_rate = 0.0  # a client that fine-tunes the tower asks for its own


def _freeze_unused(model: PreTrainedModel, layerscale: float, mask_token: bool) -> None:
    """What gets no gradient must not ask for one: DDP waits for it, weight decay moves it."""
    for name, p in model.named_parameters():
        if (name.endswith("mask_token") and not mask_token) or (layerscale == 1 and name.endswith("lambda1")):
            p.requires_grad_(False)
