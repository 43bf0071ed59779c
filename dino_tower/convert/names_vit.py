"""One name map between transformers' ViTModel and Dinov2Model, read in both directions.

The two compute the same, so long as LayerScale is 1. A ViTModel's pooler is no part of a tower: it is dropped on the
way in, and on the way out it is one that hands the class token on, since a ViTModel saved without a pooler is given a
random one by AutoModel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dino_tower.convert.names_dino import Weights, depth_of

SAME = (
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.projection.bias",
    "layernorm.weight",
    "layernorm.bias",
)
# ViTModel, after layers.N. -> Dinov2Model, after encoder.layer.N.
BLOCK = {
    "layernorm_before": "norm1",
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.o_proj": "attention.o_proj",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
POOLER = ("pooler.dense.weight", "pooler.dense.bias")
UNUSED = "embeddings.mask_token"  # both classes have one for masked training only


def name_map(depth: int) -> dict[str, str]:
    """ViTModel name -> Dinov2Model name, as the two are in memory."""
    blocks = {
        f"layers.{i}.{vit}.{kind}": f"encoder.layer.{i}.{native}.{kind}"
        for i in range(depth)
        for vit, native in BLOCK.items()
        for kind in ("weight", "bias")
    }
    return {**{name: name for name in SAME}, **blocks}


def vit_to_native(weights: Mapping[str, Tensor]) -> Weights:
    """State dict of a ViTModel to that of a Dinov2Model, bit for bit. Raises ValueError for a name without a place."""
    depth = depth_of(weights, "layers.")
    names = name_map(depth)
    native: Weights = {}
    for name, value in weights.items():
        if name in names:
            native[names[name]] = value.clone()
        elif name not in (*POOLER, UNUSED):
            raise ValueError(f"no place for {name!r} in a Dinov2Model")
    dim = native["layernorm.weight"].shape[0]
    native[UNUSED] = torch.zeros(1, dim)
    for i in range(depth):
        for k in (1, 2):
            native[f"encoder.layer.{i}.layer_scale{k}.lambda1"] = torch.ones(dim)
    return native


def native_to_vit(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `vit_to_native`, with a pooler that hands the class token on (`pooler_act` linear).

    Raises ValueError for a name without a place, and for a LayerScale that is not 1 (`fold_layerscale` first).
    """
    depth = depth_of(weights, "encoder.layer.")
    names = {native: vit for vit, native in name_map(depth).items()}
    out: Weights = {}
    for name, value in weights.items():
        if name in names:
            out[names[name]] = value.clone()
        elif name.endswith("lambda1"):
            if not bool((value == 1).all()):
                raise ValueError(f"{name} is not 1, and a ViTModel has no LayerScale")
        elif name != UNUSED:
            raise ValueError(f"no place for {name!r} in a ViTModel")
    dim = out["layernorm.weight"].shape[0]
    out[POOLER[0]], out[POOLER[1]] = torch.eye(dim), torch.zeros(dim)
    return out
