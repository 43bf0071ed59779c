"""Towers in VLMs of transformers: swap one, build a VLM around one, train it on conversations.

Importing this registers `ProjectedLlavaForConditionalGeneration`, so that `AutoModelForImageTextToText` loads it.
"""

from __future__ import annotations

from dino_tower.adapters.vlm.attach import attach_tower
from dino_tower.adapters.vlm.build import build_vlm
from dino_tower.adapters.vlm.projected import ProjectedLlavaConfig, ProjectedLlavaForConditionalGeneration
from dino_tower.adapters.vlm.trainable import freeze_unreached, tower_of, tower_targets

__all__ = [
    "ProjectedLlavaConfig",
    "ProjectedLlavaForConditionalGeneration",
    "attach_tower",
    "build_vlm",
    "freeze_unreached",
    "tower_of",
    "tower_targets",
]
