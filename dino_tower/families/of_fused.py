"""Reading `dino_tower.fused.FusedTower`: everything about a place in one vector, interleaved tokens side by side."""

from __future__ import annotations

from dino_tower.families.family import Family, unchanged

FUSED = Family(
    forward=lambda model, pixels: model.dense(pixels),
    blocks=lambda model: [model.fusion],
    norm=unchanged,
    patch=lambda model: model.config.patch_size,
    width=lambda model: model.dense_width,
    prefix=lambda model: int(model.config.class_token),
    has_cls=lambda model: model.config.class_token,
)
