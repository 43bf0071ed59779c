"""One name map between timm's VisionTransformer and transformers' Dinov2 classes, read in both directions.

timm has the names of the original DINO code (names_dino.py) but for registers, SwiGLU and the mask token. Of towers
with registers the published timm models keep no position for the class token: it is added into the token itself.
(timm/models/vision_transformer.py::_convert_dinov2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dino_tower.convert.names_dino import Weights, native_to_original, original_to_native

# timm -> original; SwiGLU's under their own condition, since a plain MLP has fc1 and fc2 too
TOKENS = {"reg_token": "register_tokens"}
SWIGLU = {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}


def timm_to_native(weights: Mapping[str, Tensor]) -> Weights:
    """State dict of a timm VisionTransformer to that of a Dinov2Model (WithRegisters).

    Bit for bit where the position table has a row for the class token. A table without one gets a row of zeros, one
    with rows for registers has them added into the registers: the same sums. Raises ValueError for a name or a
    table that has no place.
    """
    swiglu = is_swiglu(weights)
    original: Weights = {}
    for name, value in weights.items():
        if swiglu:
            for ours, theirs in SWIGLU.items():
                name = name.replace(ours, theirs)
        original[TOKENS.get(name, name)] = value
    for needed in ("cls_token", "pos_embed"):
        if needed not in original:
            raise ValueError(f"no {needed}: a Dinov2Model has a class token and a position table")
    registers = original["register_tokens"].shape[1] if "register_tokens" in original else 0
    table = original["pos_embed"]
    rows = table.shape[1]
    if _is_square(rows):
        original["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    elif registers and _is_square(rows - 1 - registers):
        original["register_tokens"] = original["register_tokens"] + table[:, 1 : 1 + registers]
        original["pos_embed"] = torch.cat([table[:, :1], table[:, 1 + registers :]], dim=1)
    elif not _is_square(rows - 1):
        raise ValueError(f"a position table of {rows} rows belongs to no square grid")
    return original_to_native(original)


def native_to_timm(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `timm_to_native`, in the layout of timm's published models. The mask token is left out.

    Raises ValueError for a name that has no place.
    """
    original = native_to_original(weights)
    original.pop("mask_token", None)
    if "register_tokens" in original:
        table = original["pos_embed"]
        original["cls_token"] = original["cls_token"] + table[:, :1]
        original["pos_embed"] = table[:, 1:].clone()
    names = {theirs: ours for ours, theirs in TOKENS.items()}
    out: Weights = {}
    for name, value in original.items():
        for ours, theirs in SWIGLU.items():
            name = name.replace(theirs, ours)
        out[names.get(name, name)] = value
    return out


def is_swiglu(weights: Mapping[str, Tensor]) -> bool:
    """fc1 makes twice what fc2 takes: the gate and the value in one matrix."""
    first, second = (weights.get(f"blocks.0.mlp.{layer}.weight") for layer in ("fc1", "fc2"))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
