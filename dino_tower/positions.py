"""Position tables at other sizes, the way DINO's own code resized them.

Implementations differ by tens of percent at 96 px, so a tower trains with the interpolation that its exported class
uses. The reference's way exists to reproduce the published runs.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Dinov2Model, PreTrainedModel

from dino_tower.errors import ConfigError


def use_reference_interpolation(model: PreTrainedModel) -> None:
    """Make a `Dinov2Model` resize its positions as vision_transformer.py::interpolate_pos_encoding does.

    Bicubic by scale factor with 0.1 added to the grid, instead of by size. Not saved with the model: an exported tower
    is resized by its class. Raises ConfigError for any other class.
    """
    if not isinstance(model, Dinov2Model):
        raise ConfigError(
            f"model.positions reference is for a plain DINO ViT, not {type(model).__name__}; use model.positions native"
        )
    embeddings: Any = model.embeddings
    embeddings.interpolate_pos_encoding = MethodType(_reference, embeddings)


def rescale_at_random(model: PreTrainedModel, most: float | None) -> None:
    """Make a `DINOv3ViTModel` multiply its patch coordinates in train mode by a number, drawn log-uniformly from
    1 / most to `most`, anew for each forward pass; None: not any more (DINOv3).

    Not saved with the model: a client that trains the tower wants its positions where they are.
    """
    rope: Any = model.rope_embeddings
    rope.config = copy.deepcopy(model.config)
    rope.config.pos_embed_rescale = most


def _reference(embeddings_module: Any, embeddings: Tensor, height: int, width: int) -> Tensor:
    table = embeddings_module.position_embeddings
    side = round((table.shape[1] - 1) ** 0.5)
    patch = embeddings_module.patch_embeddings.patch_size
    grid = (height // patch[0], width // patch[1])
    if grid == (side, side):
        return table
    patches = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = tuple((n + 0.1) / side for n in grid)
    resized = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def antialiased_bicubic(table: Tensor, size: tuple[Any, Any]) -> Tensor:
    """[S, S, D] to [h, w, D] as F.interpolate(mode="bicubic", antialias=True) does, in plain sums of products.

        weight of row j for output i = k((j + 1/2 - (i + 1/2) s) / max(s, 1)), s = S / h, each output's summing to 1

    with Keys' kernel k, a = -1/2. The exporter to ONNX freezes the size of the built-in one; this one follows it.
    """
    rows, columns = (_bicubic_weights(table.shape[i], size[i], table) for i in (0, 1))
    return torch.einsum("hs,wt,std->hwd", rows, columns, table)


def _bicubic_weights(source: int, target: Any, like: Tensor) -> Tensor:
    """[target, source]; rows sum to 1."""
    outputs = torch.arange(target, dtype=like.dtype, device=like.device)
    inputs = torch.arange(source, dtype=like.dtype, device=like.device)
    scale = source / (outputs[-1] + 1)  # a tensor: the size may be known only when the exported network runs
    x = ((inputs[None] + 0.5 - (outputs[:, None] + 0.5) * scale) / scale.clamp(min=1)).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(1, keepdim=True)


def follow_any_size(model: PreTrainedModel) -> None:
    """Make a Dinov2WithRegistersModel resize its positions by `antialiased_bicubic`, so that it can be exported."""
    embeddings: Any = model.get_submodule("embeddings")
    embeddings.interpolate_pos_encoding = MethodType(_antialiased, embeddings)


def _antialiased(embeddings_module: Any, embeddings: Tensor, height: Any, width: Any) -> Tensor:
    table = embeddings_module.position_embeddings
    side = round((table.shape[1] - 1) ** 0.5)
    patch = embeddings_module.patch_embeddings.patch_size
    grid = (height // patch[0], width // patch[1])
    resized = antialiased_bicubic(table[0, 1:].unflatten(0, (side, side)), grid)
    return torch.cat([table[:, :1], resized.flatten(0, 1)[None]], dim=1)
