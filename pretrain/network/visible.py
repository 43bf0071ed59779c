"""A ViT on some patches of a picture: those left out cost nothing behind the patch embedding.

B images, N = h w patches of which K are kept, P tokens in front of the patches (class token, registers), D features.

The patches get their positions before the others are taken away, so each says where it was. Whole backbones are what
`compute.compile` compiles, so it does not reach these forwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.families import family_name, family_of
from dino_tower.families.family import Model, pair

Keywords = dict[str, Any]  # what every block takes beside its tokens


def visible_tokens(backbone: Model, pixels: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [B, 3, H, W] to tokens in front [B, P, D] and kept patches [B, K, D], after the final norm.

    keep: int64 [B, K], the numbers of the kept patches in raster order, the same number for each picture. All of them:
    what `tokens` gives. Differentiable. Raises ConfigError for a class that is not in EMBEDDED.
    """
    name = family_name(backbone)
    if name not in EMBEDDED:
        raise ConfigError(f"{name} cannot be run on some patches only; choices: {', '.join(EMBEDDED)}")
    family, (embedded, keywords) = family_of(backbone), EMBEDDED[name](backbone, pixels, keep)
    front = family.prefix(backbone)
    x = torch.cat([embedded[:, :front], embedded[:, front:].take_along_dim(keep[..., None], 1)], 1)
    for block in family.blocks(backbone):
        x = block(x, None, **keywords)
    x = family.norm(backbone, x)
    return x[:, :front], x[:, front:]


def _plain(model: Model, pixels: Tensor, keep: Tensor) -> tuple[Tensor, Keywords]:
    return model.embeddings(pixels), {}


def _sized(model: Model, pixels: Tensor, keep: Tensor) -> tuple[Tensor, Keywords]:
    other = tuple(pixels.shape[-2:]) != pair(model.config.image_size)
    return model.embeddings(pixels, interpolate_pos_encoding=other), {}


def _clip(model: Model, pixels: Tensor, keep: Tensor) -> tuple[Tensor, Keywords]:
    embedded, keywords = _sized(model, pixels, keep)
    return model.pre_layrnorm(embedded), keywords


def _rotary(model: Model, pixels: Tensor, keep: Tensor) -> tuple[Tensor, Keywords]:
    # each picture's own rows of the table [N, d], with a dimension of 1 for the heads
    angles = tuple(table[keep][:, None] for table in model.rope_embeddings(pixels))
    return model.embeddings(pixels), {"position_embeddings": angles}


EMBEDDED: dict[str, Callable[[Model, Tensor, Tensor], tuple[Tensor, Keywords]]] = {
    "dinov2": _plain,
    "dinov2_with_registers": _plain,
    "dinov3_vit": _rotary,
    "siglip_vision_model": _sized,
    "clip_vision_model": _clip,
}
