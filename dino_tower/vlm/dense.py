"""Depth, segmentation and detection classes of transformers: the settings with which they take a tower as Backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dino_tower.errors import ConfigError
from dino_tower.vlm.facts import DENSE, LAYOUTS, Dense
from dino_tower.vlm.vision import Vision, vision_of


@dataclass(frozen=True)
class DenseSettings:
    """backbone: arguments for `AutoConfig.from_pretrained(TOWER, ...)`; config: arguments for the client's own config.

    module: where the tower sits in the model.
    """

    client: str
    tower: str
    module: str
    backbone: dict[str, Any]
    config: dict[str, Any]


def dense_settings_for(client: str, tower: Any) -> DenseSettings:
    """The settings that a class of DENSE needs for a tower (as `image_tokens_for` takes it). Raises ConfigError."""
    fact, vision = DENSE[client], vision_of(tower)
    _refuse(client, fact, vision)
    backbone: dict[str, Any] = {"out_indices": _levels(vision.depth, fact.levels)}
    if fact.tokens:
        backbone["reshape_hidden_states"] = False
    config = {"patch_size": vision.patch} if fact.patch_size else {}
    return DenseSettings(client, vision.family, fact.module, backbone, config)


def check_dense(name: str, config: Any, tower: Any) -> None:
    """Raise ConfigError where the class cannot take the tower, or (config not None) where its settings do not fit it.

    Nothing goes wrong in silence here: a wrong setting fails, with a message about shapes or indices.
    """
    fact = DENSE[name]
    wanted = dense_settings_for(name, tower)
    backbone = getattr(config, "backbone_config", None)
    if backbone is None:
        return
    if backbone.model_type != wanted.tower:
        raise ConfigError(
            f"this {name} was built for another tower (family {backbone.model_type}, not {wanted.tower}):"
            " build it with the tower's config as backbone_config"
        )
    if fact.tokens and backbone.reshape_hidden_states:
        raise ConfigError(
            f"{name} wants tokens from its backbone, not maps: set reshape_hidden_states=False in its backbone_config"
        )
    if len(backbone.out_indices) < fact.at_least:
        raise ConfigError(
            f"{name} reads {fact.at_least} levels or more, and its backbone_config gives {len(backbone.out_indices)}:"
            f" set out_indices={wanted.backbone['out_indices']}"
        )
    _compare(name, config, wanted.config)


def _compare(name: str, config: Any, wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if getattr(config, key) != value:
            raise ConfigError(f"{name}: {key}={getattr(config, key)} is not the tower's; set {key}={value}")


def _refuse(name: str, fact: Dense, vision: Vision) -> None:
    if not vision.layout.backbone:
        families = ", ".join(family for family, layout in LAYOUTS.items() if layout.backbone)
        raise ConfigError(
            f"{name} is built on a Backbone class; transformers has none for {vision.family}, but for: {families}"
        )
    if not fact.tokens:
        return
    if vision.registers:
        raise ConfigError(
            f"{name} takes {vision.registers} registers for patches; use a tower without registers (dinov2)"
        )
    if not vision.layout.backbone_cls:
        raise ConfigError(
            f"{name} cuts off a class token that the Backbone of {vision.family} has dropped already;"
            " use a dinov2 tower"
        )


def _levels(depth: int, count: int) -> list[int]:
    """`count` hidden states at equal distances, the last one included; 0 is the embedding."""
    spread = sorted({round(depth * (k + 1) / count) for k in range(count)} - {0})
    return spread if len(spread) == count else list(range(max(0, depth + 1 - count), depth + 1))
