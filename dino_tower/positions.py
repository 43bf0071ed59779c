"""Position tables at other sizes, the way DINO's own code resized them.

Implementations differ by tens of percent at 96 px, so a tower trains with the interpolation that its exported class
uses. The reference's way exists to reproduce the published runs.
"""

from __future__ import annotations

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
