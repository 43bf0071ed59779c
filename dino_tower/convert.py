"""Weights of one ViT under the names of two libraries: the original DINO code (and timm) and transformers' Dinov2.

One name map, read in both directions. The original keeps queries, keys and values in one matrix (rows q, k, v).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Weights = dict[str, Tensor]

OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.weight": "attention.o_proj.weight",
    "attn.proj.bias": "attention.o_proj.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
QKV = ("q_proj", "k_proj", "v_proj")


def name_map(depth: int) -> dict[str, str]:
    """Original name -> Dinov2Model name, for everything but the fused query-key-value matrices."""
    blocks = {
        f"blocks.{i}.{original}": f"encoder.layer.{i}.{native}"
        for i in range(depth)
        for original, native in BLOCK.items()
    }
    return {**OUTSIDE, **blocks}


def original_to_native(weights: Mapping[str, Tensor]) -> Weights:
    """State dict of the original DINO ViT (or timm's) to that of a Dinov2Model, bit for bit.

    A plain DINO ViT has no LayerScale and no mask token: ones and zeros are filled in. Raises ValueError for a name
    that has no place.
    """
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    names = name_map(depth)
    native: Weights = {}
    for name, value in weights.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            for part, rows in zip(QKV, value.chunk(3), strict=True):
                native[f"encoder.layer.{block}.attention.{part}.{kind}"] = rows.clone()
        elif name in names:
            native[names[name]] = value.clone()
        else:
            raise ValueError(f"no place for {name!r} in a Dinov2Model")
    dim = native["layernorm.weight"].shape[0]
    native.setdefault("embeddings.mask_token", torch.zeros(1, dim))
    for i in range(depth):
        for k in (1, 2):
            native.setdefault(f"encoder.layer.{i}.layer_scale{k}.lambda1", torch.ones(dim))
    return native


def native_to_original(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `original_to_native`; LayerScale at 1 and a mask token of zeros are left out, as DINO has none.

    Raises ValueError for a name that has no place.
    """
    depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    names = {native: original for original, native in name_map(depth).items()}
    original: Weights = {}
    for name, value in weights.items():
        if any(f".attention.{part}." in name for part in QKV):
            continue
        if name not in names:
            raise ValueError(f"no place for {name!r} in an original DINO ViT")
        absent = (name.endswith("lambda1") and bool((value == 1).all())) or (
            name.endswith("mask_token") and not bool(value.any())
        )
        if not absent:
            original[names[name]] = value.clone()
    for i in range(depth):
        for kind in ("weight", "bias"):
            parts = [weights[f"encoder.layer.{i}.attention.{part}.{kind}"] for part in QKV]
            original[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    return original
