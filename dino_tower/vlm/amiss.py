"""What is amiss between a VLM as it stands and a tower: one sentence each, or ConfigError where it cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import TYPE_CHECKING, Any

from dino_tower.errors import ConfigError
from dino_tower.vlm.facts import Vlm
from dino_tower.vlm.settings import STRATEGY, dropped
from dino_tower.vlm.vision import Vision, weights_of

if TYPE_CHECKING:
    from dino_tower.vlm import ImageTokens


def settings_amiss(name: str, fact: Vlm, vision: Vision, config: Any, wanted: ImageTokens) -> Iterator[str]:
    """The settings of a config, or the class's defaults (config None), against those the tower needs."""
    built_for = getattr(config, "vision_config", None) or getattr(config, "encoder", None)
    differences = list(_another_tower(built_for, vision)) if built_for is not None else []
    if differences:
        raise ConfigError(
            f"this {name} was built for another tower ({', '.join(differences)}):"
            " build it with the tower's config as vision_config"
        )
    strategy = getattr(config, STRATEGY, fact.strategy)
    if strategy == wanted.vision_feature_select_strategy:
        yield from wanted.warnings
    else:
        consequence = f"{STRATEGY}={strategy!r}: " + "".join(
            tokens_amiss(name, vision, vision.prefix - dropped(fact, strategy))
        )
        advice = f"{consequence}; set it to {wanted.vision_feature_select_strategy!r}"
        if fact.grid and config is not None:
            raise ConfigError(advice)
        yield advice
        yield from reload_amiss(name, fact)
    yield from _layers_amiss(name, fact, vision, config, wanted)
    yield from _tiles_amiss(name, fact, config, wanted)
    yield from _pooling_amiss(name, vision, config, wanted)


def _another_tower(config: Any, vision: Vision) -> Iterator[str]:
    theirs = {
        "family": type(config).model_type,  # the instance may repeat what was saved under another class
        "width": getattr(config, "hidden_size", None),
        "depth": getattr(config, "num_hidden_layers", None),
        "registers": getattr(config, "num_register_tokens", 0),
    }
    for key, value in theirs.items():
        if value != getattr(vision, key):
            yield f"{key} {value}, not {getattr(vision, key)}"


def tokens_amiss(name: str, vision: Vision, extra: int) -> Iterator[str]:
    """extra: tokens left in front of the patches; -1: a patch is lost."""
    if extra > 0:
        yield f"{name} takes {vision.named(extra)} of this {vision.family} for image tokens"
    elif extra < 0:
        yield f"{name} cuts off the first patch, since this {vision.family} has no class token"


def reload_amiss(name: str, fact: Vlm) -> Iterator[str]:
    """What saving does to it."""
    if fact.forgets:
        yield (
            f"{name} forgets the tower when it is saved and loaded: from_pretrained builds a vision model of its own,"
            " often without an error; hand it the config that it was built with (config=...)"
        )


def _layers_amiss(name: str, fact: Vlm, vision: Vision, config: Any, wanted: ImageTokens) -> Iterator[str]:
    if fact.layer is None:
        return
    chosen = getattr(config, "vision_feature_layer", fact.layer)
    states = [chosen] if isinstance(chosen, int) else list(chosen)
    wrong = [layer for layer in states if not -vision.depth - 1 <= layer <= vision.depth]
    if wrong and config is not None:
        raise ConfigError(f"{name}: vision_feature_layer={wrong[0]}, and the tower has {vision.depth} blocks")
    deepest = max(layer % (vision.depth + 1) for layer in states)
    if wrong or deepest < vision.depth:
        yield (
            f"{name} reads vision_feature_layer={chosen}: the blocks behind it and the final norm do nothing and get no"
            f" gradient (DDP calls them unused); set it to {wanted.vision_feature_layer}, or freeze the tower"
        )


def _tiles_amiss(name: str, fact: Vlm, config: Any, wanted: ImageTokens) -> Iterator[str]:
    if fact.tile is None:
        return
    grids = getattr(config, "image_grid_pinpoints", [[fact.tile, fact.tile]])
    wrong = [grid for grid in grids if grid[0] % wanted.image_size or grid[1] % wanted.image_size]
    if not wrong:
        return
    advice = (
        f"{name} cuts pictures into tiles of the tower's {wanted.image_size} px, and its image_grid_pinpoints"
        f" ({wrong[0]}, ...) are no multiples of that; set them to {wanted.config['image_grid_pinpoints']}"
    )
    if config is not None:
        raise ConfigError(advice)
    yield advice


def _pooling_amiss(name: str, vision: Vision, config: Any, wanted: ImageTokens) -> Iterator[str]:
    if "mm_tokens_per_image" not in wanted.config:
        return
    tokens = getattr(config, "mm_tokens_per_image", 256)
    grid = wanted.image_size // vision.patch
    if isqrt(tokens) ** 2 == tokens and grid % isqrt(tokens) == 0:
        return
    advice = (
        f"{name} cannot pool {grid} x {grid} patches to mm_tokens_per_image={tokens};"
        f" set it to {wanted.config['mm_tokens_per_image']}"
    )
    if config is not None:
        raise ConfigError(advice)
    yield advice


def processor_amiss(processor: Any, vision: Vision, wanted: ImageTokens) -> Iterator[str]:
    """Settings that differ from ours; `patch_size` of AyaVision's is already multiplied with its downsample_factor."""
    images = getattr(processor, "image_processor", processor)
    normalised = {} if vision.mean is None else {"image_mean": vision.mean, "image_std": vision.std}
    for owner, arguments in ((processor, wanted.processor), (images, {**wanted.image_processor, **normalised})):
        for key, value in arguments.items():
            have = getattr(owner, key, value)
            if key == "patch_size" and "downsample_factor" in arguments:
                value = value * arguments["downsample_factor"]
            if _plain(have) != _plain(value):
                yield f"the {type(owner).__name__} has {key}={_plain(have)}; the tower needs {_plain(value)}"


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return {k: v for k, v in value.items() if v is not None} if hasattr(value, "items") else value


def weights_amiss(module: Any, tower: Any, where: str) -> Iterator[str]:
    """The weights of the module in the VLM against the tower's, where it has some in memory."""
    wanted = weights_of(tower)
    if wanted is None:
        return
    have = module.state_dict()
    other = [key for key, value in wanted.items() if key not in have or not have[key].equal(value.to(have[key]))]
    if other:
        yield (
            f"the VLM holds other weights than the tower ({other[0]}, ...); unless it trained them, load the tower's:"
            f" vlm.get_submodule({where!r}).load_state_dict(tower.model.state_dict())"
        )
