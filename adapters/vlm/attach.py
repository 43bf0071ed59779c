"""Another tower for an existing VLM of transformers, with every setting that goes with it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from typing import Any

from dino_tower.adapters.projectors import PROJECTORS, build_projector
from dino_tower.adapters.vlm.assemble import PROJECTOR, assemble, parts_of
from dino_tower.adapters.vlm.processors import processor_like
from dino_tower.adapters.vlm.projected import ProjectedLlavaConfig, ProjectedLlavaForConditionalGeneration
from dino_tower.adapters.vlm.trainable import fact_of, freeze_unreached
from dino_tower.errors import ConfigError, unknown
from dino_tower.vlm import ImageTokens, check_vlm, image_tokens_for
from dino_tower.vlm.facts import VLMS, Vlm
from dino_tower.vlm.settings import STRATEGY, settings
from dino_tower.vlm.vision import Vision, vision_of

LLAVA = "LlavaForConditionalGeneration"
NOT_ARGUMENTS = (
    "transformers_version", "architectures", "vision_config", "text_config", "projector", "projector_options",
    "projector_grid",
)  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """What a user asks for beside the tower; None leaves it to `image_tokens_for`."""

    image_size: int | None = None
    layer: int | list[int] | None = None
    strategy: str | None = None
    projector: str = "new"
    options: dict[str, int] | None = None


def attach_tower(
    vlm: Any,
    tower: Any,
    processor: Any = None,
    *,
    image_size: int | None = None,
    layer: int | list[int] | None = None,
    strategy: str | None = None,
    projector: str = "new",
    options: dict[str, int] | None = None,
    patches_only: bool = False,
) -> tuple[Any, Any]:
    """(vlm, processor): a VLM of the same class around a copy of `tower`, and the processor that fits it.

    vlm: a LLaVA, LLaVA-NeXT, LLaVA-OneVision, VipLLaVA, InternVL, AyaVision, PaliGemma, Gemma 3 or Cohere2Vision of
        transformers. The new one shares its language model with it; the old one is left as it was.
    tower: a Tower or a TOWER by name. processor: the old VLM's, whose tokenizer and chat template are kept.
    image_size: pixels; layer: vision_feature_layer; strategy: vision_feature_select_strategy; None is what fits.
    projector: "new" draws the VLM's own kind anew, since the old one reads other features; "keep" takes the old weights
        where they fit; a name of PROJECTORS (LLaVA only; `options` are its own) puts that one in.
    patches_only: put the tower in as a fused tower of one, which gives its normed patches and nothing else: registers
        and class tokens cannot leak into any VLM then. Loading the result needs `import dino_tower.fused`.

    Warns (UserWarning) where the two silently misunderstand each other; raises ConfigError where they cannot work.
    """
    fact = fact_of(vlm)
    if hasattr(vlm, "peft_config") or getattr(vlm, "_hf_peft_config_loaded", False):
        raise ConfigError("this VLM carries an adapter: merge it (merge_and_unload) before another tower is attached")
    tower = tower_given(tower, patches_only, layer)
    wish = Wish(image_size, layer, strategy, projector, options)
    name = next(name for name, one in VLMS.items() if one is fact)
    wanted = settings_wished(name, fact, tower, wish)
    kind, config, wanted = _kind_and_config(vlm, tower, wanted, wish)
    made = assemble(kind, config, tower.model, parts_of(vlm), vlm.dtype, vlm.device)
    made.generation_config = vlm.generation_config
    if projector == "keep":
        _keep_projector(vlm, made)
    new_processor = None if processor is None else processor_like(processor, tower, wanted)
    check_vlm(made, tower, new_processor, wanted.image_size)
    freeze_unreached(made)
    return made, new_processor


def tower_given(tower: Any, patches_only: bool = False, layer: int | list[int] | None = None) -> Any:
    """A Tower from what a user gave. Raises ConfigError for one that is no model of transformers, and for a layer
    where the tower gives its last patches only."""
    from transformers import PreTrainedModel

    from dino_tower.tower import load_tower

    found = tower if hasattr(tower, "processor") else load_tower(tower)
    if not isinstance(found.model, PreTrainedModel):
        raise ConfigError(f"{found.name} is no model of transformers, and a VLM takes no other; dino-tower convert")
    if patches_only:
        if layer not in (None, -1):
            raise ConfigError(
                f"layer {layer}: a tower that is put in as its patches alone (asked for, or because of its registers)"
                " gives those of the last layer; leave the layer out"
            )
        from dino_tower.adapters.fusion import fuse_towers

        return fuse_towers([found])
    return found


def settings_wished(name: str, fact: Vlm, tower: Any, wish: Wish) -> ImageTokens:
    """`image_tokens_for`, but for the layer and the strategy that a user insists on. Raises ConfigError."""
    wanted = image_tokens_for(name, tower, wish.image_size)
    if wish.strategy is not None:
        if fact.strategy is None:
            raise ConfigError(f"{name} has no {STRATEGY}; leave it out")
        if wish.strategy not in ("default", "full"):
            raise unknown(STRATEGY, wish.strategy, ("default", "full"))
        made = settings(fact, vision_of(tower), wish.strategy, wanted.image_size)
        wanted = replace(wanted, image_tokens=made.tokens, config=made.config, processor=made.processor)
    if wish.layer is not None:
        if fact.layer is None:
            raise ConfigError(f"{name} reads the tower's last hidden state; it has no layer to choose")
        wanted = replace(wanted, config={**wanted.config, "vision_feature_layer": wish.layer})
    return wanted


def projected(vision: Vision, wanted: ImageTokens, text: Any, wish: Wish) -> tuple[dict[str, Any], ImageTokens]:
    """Arguments for a ProjectedLlavaConfig, and the settings with the projector's number of tokens.

    LlavaProcessor counts patches: with "patches" as large as the picture there is one, and `additional` are the rest.
    """
    side = wanted.image_size // vision.patch
    patches = side * side * vision.per_place
    strategy = wanted.vision_feature_select_strategy
    if (left := patches + vision.prefix - int(strategy == "default")) != patches or wanted.warnings:
        raise ConfigError(
            f"projector {wish.projector!r} wants the {patches} patches and nothing else, and gets {left} tokens;"
            " set patches_only=True (--patches-only)"
        )
    if vision.per_place > 1 and wish.projector in ("pixel-shuffle", "c-abstractor"):
        raise ConfigError(f"projector {wish.projector!r} works on a grid, which interleaved tokens are not; use concat")
    grid = [side, side * vision.per_place]
    arguments = {"projector": wish.projector, "projector_options": wish.options, "projector_grid": grid}
    layers = wanted.vision_feature_layer
    width = vision.width * (len(layers) if isinstance(layers, list) else 1)
    tokens = build_projector(wish.projector, (grid[0], grid[1]), width, text.hidden_size, **(wish.options or {})).tokens
    if tokens == patches:
        return arguments, wanted
    processor = {
        **wanted.processor,
        "patch_size": wanted.image_size,
        "num_additional_image_tokens": tokens - int(strategy == "full"),
    }
    config = {**wanted.config, "image_seq_length": tokens}
    return arguments, replace(wanted, image_tokens=tokens, config=config, processor=processor)


def _kind_and_config(vlm: Any, tower: Any, wanted: ImageTokens, wish: Wish) -> tuple[type[Any], Any, ImageTokens]:
    ours = isinstance(vlm, ProjectedLlavaForConditionalGeneration)
    if wish.projector in ("new", "keep") and ours:
        wish = replace(wish, projector=vlm.config.projector, options=vlm.config.projector_options)
    elif wish.projector not in ("new", "keep", *PROJECTORS):
        raise unknown("projector", wish.projector, ("new", "keep", *PROJECTORS))
    elif wish.projector in ("new", "keep") and wish.options:
        raise ConfigError("options are for a projector by name; choices: " + ", ".join(PROJECTORS))
    arguments = arguments_of(vlm.config)
    arguments |= {"vision_config": copy.deepcopy(tower.model.config), "text_config": vlm.config.text_config}
    if hasattr(vlm.config, "projection_dim"):  # PaliGemma's config does not save it
        arguments["projection_dim"] = vlm.config.text_config.hidden_size
    if wish.projector in ("new", "keep"):
        return type(vlm), type(vlm.config)(**{**arguments, **wanted.config}), wanted
    if fact_of(vlm).model_type != "llava":
        raise ConfigError(f"{type(vlm).__name__} has a projector of its own; only {LLAVA} takes {wish.projector!r}")
    return llava_with(vision_of(tower), wanted, wish, arguments)


def llava_with(
    vision: Vision, wanted: ImageTokens, wish: Wish, arguments: dict[str, Any]
) -> tuple[type[Any], Any, ImageTokens]:
    """LLaVA's own class where its own projector is asked for, ours else; its config; the settings."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    if wish.projector == "mlp" and not wish.options:
        return LlavaForConditionalGeneration, LlavaConfig(**{**arguments, **wanted.config}), wanted
    more, wanted = projected(vision, wanted, arguments["text_config"], wish)
    config = ProjectedLlavaConfig(**{**arguments, **wanted.config, **more})
    return ProjectedLlavaForConditionalGeneration, config, wanted


def arguments_of(config: Any) -> dict[str, Any]:
    """The arguments that a VLM's config was made with, but for those of its two halves and of our projectors."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_ARGUMENTS}


def _keep_projector(old: Any, new: Any) -> None:
    weights = getattr(old.model, PROJECTOR).state_dict()
    place = getattr(new.model, PROJECTOR)
    for key, value in place.state_dict().items():
        if key not in weights or weights[key].shape != value.shape:
            have = tuple(weights[key].shape) if key in weights else None
            raise ConfigError(
                f'projector="keep": {key} is {have} in the old projector, {tuple(value.shape)} in the new one;'
                ' the tower has another width: projector="new"'
            )
    place.load_state_dict(weights)
