"""One name map between the original DINO and DINOv2 code and transformers' Dinov2 classes, read in both directions.

The original keeps queries, keys and values in one matrix (rows q, k, v), and the two inputs of a SwiGLU likewise (rows
gate, up). A plain DINO ViT is a `Dinov2Model` whose LayerScale is 1 and whose mask token is never used.
(dino/vision_transformer.py::VisionTransformer, dinov2/models/vision_transformer.py::DinoVisionTransformer)
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
    "register_tokens": "embeddings.register_tokens",
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
    "mlp.w3.weight": "mlp.down_proj.weight",
    "mlp.w3.bias": "mlp.down_proj.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
# one matrix of the original -> its rows, in order
FUSED = {
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
}


def depth_of(names: Mapping[str, object], prefix: str) -> int:
    """Number of blocks whose names start with `prefix` and a number; ValueError where there are none."""
    numbers = [int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)]
    if not numbers:
        raise ValueError(f"no blocks: no name starts with {prefix!r}")
    return 1 + max(numbers)


def name_map(depth: int) -> dict[str, str]:
    """Original name -> name in a Dinov2Model, for everything but the fused matrices."""
    blocks = {
        f"blocks.{i}.{original}": f"encoder.layer.{i}.{native}"
        for i in range(depth)
        for original, native in BLOCK.items()
    }
    return {**OUTSIDE, **blocks}


def fused_map(depth: int) -> dict[str, tuple[str, ...]]:
    """Original name of a fused matrix or bias -> the names of its parts in a Dinov2Model, in the order of the rows."""
    return {
        f"blocks.{i}.{original}.{kind}": tuple(f"encoder.layer.{i}.{part}.{kind}" for part in parts)
        for i in range(depth)
        for original, parts in FUSED.items()
        for kind in ("weight", "bias")
    }


def original_to_native(weights: Mapping[str, Tensor]) -> Weights:
    """State dict of an original DINO or DINOv2 ViT to that of a Dinov2Model (WithRegisters), bit for bit.

    A plain DINO ViT has no LayerScale and no mask token: ones and zeros are filled in. Raises ValueError for a name
    that has no place.
    """
    depth = depth_of(weights, "blocks.")
    names, fused = name_map(depth), fused_map(depth)
    native: Weights = {}
    for name, value in weights.items():
        if name in fused:
            parts = fused[name]
            native.update(zip(parts, (rows.clone() for rows in value.chunk(len(parts))), strict=True))
        elif name in names:
            native[names[name]] = value.clone()
        else:
            raise ValueError(f"no place for {name!r} in a Dinov2Model")
    if "layernorm.weight" not in native:
        raise ValueError("the final norm (norm.weight) is missing")
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
    depth = depth_of(weights, "encoder.layer.")
    names = {native: original for original, native in name_map(depth).items()}
    fused = fused_map(depth)
    parts_of_fused = {part for parts in fused.values() for part in parts}
    scales = [name for name in weights if name.endswith("lambda1")]
    absent = set(scales) if all(bool((weights[name] == 1).all()) for name in scales) else set()
    if "embeddings.mask_token" in weights and not bool(weights["embeddings.mask_token"].any()):
        absent.add("embeddings.mask_token")
    original: Weights = {}
    for name, value in weights.items():
        if name in names and name not in absent:
            original[names[name]] = value.clone()
        elif name not in names and name not in parts_of_fused:
            raise ValueError(f"no place for {name!r} in an original DINO ViT")
    for whole, parts in fused.items():
        if parts[0] in weights:
            original[whole] = torch.cat([weights[part] for part in parts])
    return original
