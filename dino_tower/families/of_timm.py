"""Reading timm's models: ViTs with or without class token, registers and attention pooling; convolutional networks."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dino_tower.families.family import Family, Model, inputs_of, pair


def forward(model: Model, pixels: Tensor) -> Tensor:
    """`forward_features`, and the final norm where timm keeps it behind the pooling."""
    hidden = model.forward_features(pixels)
    return model.fc_norm(hidden) if isinstance(model.norm, nn.Identity) else hidden


def norm(model: Model, hidden: Tensor) -> Tensor:
    """The final norm, before or behind the pooling; a Perception Encoder of the spatial kind has none."""
    return (model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm)(hidden)


def keys(attention: Any, hidden: Tensor) -> Tensor:
    """[B, T, D] to [B, T, heads, d]: the middle third of a fused projection, or a projection of its own."""
    if getattr(attention, "qkv", None) is None:
        projected = attention.k_proj(hidden)
    else:
        bias = attention.qkv.bias
        bias = getattr(attention, "k_bias", None) if bias is None else bias.chunk(3)[1]
        projected = F.linear(hidden, attention.qkv.weight.chunk(3)[1], bias)
    split = projected.unflatten(-1, (attention.num_heads, -1))
    return attention.k_norm(split) if hasattr(attention, "k_norm") else split


def weights(model: Model, attention: Any, run: Callable[[], object]) -> Tensor:
    """[B, heads, T, T]: what enters the dropout of an attention that is not fused."""
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        with inputs_of(attention.attn_drop) as seen:
            run()
    finally:
        attention.fused_attn = fused
    return seen[0]


def pooling(model: Model, patches: Tensor) -> Tensor | None:
    """Attention of the learned query of SigLIP's or the Perception Encoder's pooling: layers/attention_pool.py."""
    pool = getattr(model, "attn_pool", None)
    if pool is None or not hasattr(pool, "latent"):
        return None
    heads = (pool.num_heads, pool.head_dim)
    if pool.pos_embed is not None:
        patches = patches + pool.pos_embed
    queries = pool.q_norm(pool.q(pool.latent).unflatten(-1, heads).transpose(1, 2))
    pool_keys = pool.k_norm(pool.kv(patches).chunk(2, -1)[0].unflatten(-1, heads).transpose(1, 2))
    return torch.softmax(queries * pool.scale @ pool_keys.transpose(-2, -1), -1)[:, :, 0]


def native(model: Model) -> tuple[int, int] | None:
    """None where timm resizes the positions with the picture."""
    return None if getattr(model, "dynamic_img_size", False) else pair(model.patch_embed.img_size)


def convnext_norm(model: Model, hidden: Tensor) -> Tensor:
    """The norm that stands before the pooling, or else behind it in the head."""
    return model.head.norm(hidden) if hasattr(model.head, "norm") else model.norm_pre(hidden)


def convnext(model: Model, pixels: Tensor) -> Tensor:
    """The map with its final norm."""
    hidden = model.forward_features(pixels)
    return model.head.norm(hidden) if hasattr(model.head, "norm") else hidden


def _stride(model: Model) -> int:
    return model.feature_info[-1]["reduction"]


TRANSFORMER = Family(
    forward=forward,
    blocks=attrgetter("blocks"),
    norm=norm,
    patch=lambda model: pair(model.patch_embed.patch_size)[0],
    width=lambda model: model.num_features,
    prefix=lambda model: model.num_prefix_tokens,
    has_cls=lambda model: getattr(model, "cls_token", None) is not None,
    native=native,
    attention=attrgetter("attn"),
    keys=keys,
    weights=weights,
    pooling=pooling,
)
RESNET = Family(
    forward=lambda model, pixels: model.forward_features(pixels),
    blocks=attrgetter("layer1", "layer2", "layer3", "layer4"),
    norm=lambda model, hidden: hidden,
    patch=_stride,
    width=lambda model: model.num_features,
)
CONVNEXT = Family(
    forward=convnext,
    blocks=attrgetter("stages"),
    norm=convnext_norm,
    patch=_stride,
    width=lambda model: model.num_features,
)
