"""The built-in scenes: `make_scene` draws one with everything that is known about it."""

from __future__ import annotations

from dino_tower.scenes.scene import (
    LEVELS,
    SPLITS,
    VOID,
    Level,
    Scene,
    SceneObject,
    kind_names,
    make_scene,
    semantic_names,
)

__all__ = ["LEVELS", "SPLITS", "VOID", "Level", "Scene", "SceneObject", "kind_names", "make_scene", "semantic_names"]
