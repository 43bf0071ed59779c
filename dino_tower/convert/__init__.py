"""Weights of one ViT under the names of several libraries: one name map each, read in both directions."""

from __future__ import annotations

from dino_tower.convert.names_dino import native_to_original, original_to_native
from dino_tower.convert.names_timm import native_to_timm, timm_to_native
from dino_tower.convert.names_vit import native_to_vit, vit_to_native

__all__ = [
    "native_to_original",
    "native_to_timm",
    "native_to_vit",
    "original_to_native",
    "timm_to_native",
    "vit_to_native",
]
