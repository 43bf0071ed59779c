"""The sizes of a ViT read off its weights, and the transformers model that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
)

from dino_tower.convert.names_dino import Weights, depth_of
from dino_tower.errors import ConfigError

HEAD_WIDTH = 64  # features of one attention head in every published ViT of these families
EPS = 1e-6  # LayerNorm of DINO, DINOv2 and timm's ViTs
MLP_RATIOS = range(1, 9)


@dataclass(frozen=True)
class Shape:
    """Sizes of a ViT: features, blocks, heads, pixels along a patch and along the native picture, MLP ratio."""

    width: int
    depth: int
    heads: int
    patch: int
    image_size: int
    mlp_ratio: int
    registers: int
    swiglu: bool
    layerscale: bool  # whether it differs from 1 anywhere
    qkv_bias: bool


def shape_of(native: Mapping[str, Tensor], heads: int | None = None) -> Shape:
    """Sizes read off the weights of a Dinov2Model (WithRegisters).

    heads: what no weight tells; width / 64 if not given. Raises ConfigError for weights that are no such ViT.
    """
    needed = ("embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings")
    if missing := [name for name in needed if name not in native]:
        raise ConfigError(f"the weights lack {', '.join(missing)}")
    width, channels, patch, across = native[needed[0]].shape
    if channels != 3 or patch != across:
        raise ConfigError(f"patches of {patch} x {across} pixels in {channels} channels; only square ones in RGB fit")
    grid = math.isqrt(native[needed[1]].shape[1] - 1)
    if grid**2 != native[needed[1]].shape[1] - 1:
        raise ConfigError(f"a position table of {native[needed[1]].shape[1]} rows belongs to no square grid")
    if heads is None and width % HEAD_WIDTH:
        raise ConfigError(
            f"the number of attention heads is not in the weights, and the width {width} is no multiple of "
            f"{HEAD_WIDTH}; give it with --heads"
        )
    heads = heads or width // HEAD_WIDTH
    if heads < 1 or width % heads:
        raise ConfigError(f"--heads {heads} does not divide the width {width}")
    swiglu = "encoder.layer.0.mlp.gate_proj.weight" in native
    first = native.get(f"encoder.layer.0.mlp.{'gate_proj' if swiglu else 'fc1'}.weight")
    if first is None:
        raise ConfigError("the weights lack the MLP of the first block")
    ratio = next((r for r in MLP_RATIOS if _hidden(width, r, swiglu) == len(first)), None)
    if ratio is None:
        raise ConfigError(f"an MLP of {len(first)} features on a width of {width} fits no whole ratio of a Dinov2Model")
    registers = native.get("embeddings.register_tokens")
    scales = [value for name, value in native.items() if name.endswith("lambda1")]
    return Shape(
        width=width,
        depth=depth_of(native, "encoder.layer."),
        heads=heads,
        patch=patch,
        image_size=grid * patch,
        mlp_ratio=ratio,
        registers=0 if registers is None else registers.shape[1],
        swiglu=swiglu,
        layerscale=any(bool((scale != 1).any()) for scale in scales),
        qkv_bias="encoder.layer.0.attention.q_proj.bias" in native,
    )


def _hidden(width: int, ratio: int, swiglu: bool) -> int:
    """Dinov2SwiGLUFFN keeps two thirds, rounded up to a multiple of 8."""
    return (width * ratio * 2 // 3 + 7) // 8 * 8 if swiglu else width * ratio


def native_model(native: Mapping[str, Tensor], shape: Shape, eps: float = EPS) -> PreTrainedModel:
    """A Dinov2Model, or Dinov2WithRegistersModel, that holds exactly these weights. Raises ConfigError otherwise."""
    settings: dict[str, Any] = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "patch_size": shape.patch,
        "image_size": shape.image_size,
        "mlp_ratio": shape.mlp_ratio,
        "use_swiglu_ffn": shape.swiglu,
        "qkv_bias": shape.qkv_bias,
        "layer_norm_eps": eps,
        "layerscale_value": 1.0,
    }
    model: PreTrainedModel
    with torch.random.fork_rng(devices=[]):  # a model is drawn before it is filled; the caller's draws stay his
        if shape.registers:
            model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**settings, num_register_tokens=shape.registers))
        else:
            model = Dinov2Model(Dinov2Config(**settings))
    try:
        model.load_state_dict({name: value.float() for name, value in native.items()}, strict=True)
    except RuntimeError as error:
        first = str(error).split("\n\t")[1] if "\n\t" in str(error) else str(error)
        reason = " ".join(first.split())[:200]
        raise ConfigError(f"the weights are not those of a {type(model).__name__}: {reason}") from None
    return model.eval()


def fold_layerscale(native: Mapping[str, Tensor]) -> Weights:
    """The same function with LayerScale multiplied into the layers before it, for classes that have none.

    x * lambda with x = W h + b  is  (lambda W) h + lambda b
    """
    folded = {name: value.clone() for name, value in native.items()}
    for name, scale in native.items():
        if not name.endswith("lambda1"):
            continue
        block = name.split(".layer_scale")[0]
        last = "mlp.down_proj" if f"{block}.mlp.down_proj.weight" in native else "mlp.fc2"
        layer = f"{block}.attention.o_proj" if "layer_scale1" in name else f"{block}.{last}"
        folded[f"{layer}.weight"] = scale[:, None] * native[f"{layer}.weight"]
        folded[f"{layer}.bias"] = scale * native[f"{layer}.bias"]
        folded[name] = torch.ones_like(scale)
    return folded
