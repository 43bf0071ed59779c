"""The arguments that each VLM's config, processor and image processor need, as functions of the tower's sizes.

s is the side of a picture (or tile) in pixels, N the number of its patches, p the number of tokens in front of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dino_tower.vlm.facts import Vlm
from dino_tower.vlm.vision import Vision

STRATEGY = "vision_feature_select_strategy"
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Arguments for the config, the processor and the image processor of a VLM, and the image tokens they make."""

    tokens: int
    config: Arguments = field(default_factory=dict)
    processor: Arguments = field(default_factory=dict)
    image_processor: Arguments = field(default_factory=dict)


def settings(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    """What `fact` needs for pictures (or tiles) of `side` pixels. strategy: vision_feature_select_strategy, if any."""
    made = SETTINGS[fact.model_type](fact, vision, strategy, side)
    if made.image_processor and vision.mean is not None:  # the VLMs' own processors normalise as CLIP does
        made.image_processor.update(image_mean=vision.mean, image_std=vision.std)
    return made


def dropped(fact: Vlm, strategy: str | None) -> int:
    """Tokens that the VLM cuts off the front."""
    return fact.drops if fact.strategy is None else int(strategy == "default")


def layers(fact: Vlm, vision: Vision) -> int | list[int]:
    """The VLM's own layers with the deepest moved to the last block: a DINO tower is trained to its end."""
    if not isinstance(fact.layer, tuple):
        return -1
    rest = [layer for layer in fact.layer[1:] if -vision.depth - 1 <= layer <= vision.depth]
    return [-1, *rest] if len(rest) == len(fact.layer) - 1 else [-1]


def _llava(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    tokens = _patches(vision, side) + vision.prefix - dropped(fact, strategy)
    config = {**_selection(fact, vision, strategy), "image_seq_length": tokens}
    processor = _llava_processor(vision, strategy or "default")
    if vision.per_place > 1:  # LlavaProcessor counts one token a patch
        processor["num_additional_image_tokens"] += (side // vision.patch) ** 2 * (vision.per_place - 1)
    return Settings(tokens, config, processor)


def _llava_next(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    grids = [[side * h, side * w] for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    return Settings(
        _patches(vision, side),
        {**_selection(fact, vision, strategy), "image_grid_pinpoints": grids},
        _llava_processor(vision, strategy),
        {"size": {"shortest_edge": side}, "crop_size": _square(side), "image_grid_pinpoints": grids},
    )


def _llava_onevision(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    grids = [[side * h, side * w] for h in range(1, 7) for w in range(1, 7)]
    # the processor takes one off again for "default"
    tokens = _patches(vision, side) + dropped(fact, strategy)
    return Settings(
        _patches(vision, side),
        {**_selection(fact, vision, strategy), "image_grid_pinpoints": grids},
        {"num_image_tokens": tokens, STRATEGY: strategy},
        {"size": _square(side), "image_grid_pinpoints": grids},
    )


def _internvl(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    tokens = _patches(vision, side) // fact.merge**2
    config = {**_selection(fact, vision, strategy), "image_seq_length": tokens}
    return Settings(tokens, config, {"image_seq_length": tokens}, {"size": _square(side)})


def _aya_vision(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    return Settings(
        _patches(vision, side) // fact.merge**2,
        {**_selection(fact, vision, strategy), "downsample_factor": fact.merge},
        {"patch_size": vision.patch, "img_size": side, "downsample_factor": fact.merge},
        {"size": _square(side)},
    )


def _paligemma(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    tokens = _patches(vision, side) + vision.prefix
    return Settings(tokens, image_processor={"size": _square(side), "image_seq_length": tokens})


def _gemma3(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    """It pools a square of patches to mm_tokens_per_image: its own 256 where the grid divides, else no pooling."""
    grid = side // vision.patch
    tokens = 256 if grid % 16 == 0 else grid**2
    image = {"size": _square(side), "image_seq_length": tokens}
    return Settings(tokens, {"mm_tokens_per_image": tokens}, {"image_seq_length": tokens}, image)


def _cohere2_vision(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    """The `patch_size` of its image processor is no patch but the number of image tokens along a side."""
    along = side // vision.patch // fact.merge
    return Settings(
        along**2,
        {"downsample_factor": fact.merge},
        image_processor={"size": _square(side), "patch_size": along},
    )


def _encoder_decoder(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    return Settings(_patches(vision, side) + vision.prefix)


def _dual_encoder(fact: Vlm, vision: Vision, strategy: str | None, side: int) -> Settings:
    return Settings(1)


SETTINGS: dict[str, Callable[[Vlm, Vision, str | None, int], Settings]] = {
    "llava": _llava,
    "vipllava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "aya_vision": _aya_vision,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "cohere2_vision": _cohere2_vision,
    "vision-encoder-decoder": _encoder_decoder,
    "vision-text-dual-encoder": _dual_encoder,
}


def _selection(fact: Vlm, vision: Vision, strategy: str | None) -> Arguments:
    chosen: Arguments = {} if strategy is None else {STRATEGY: strategy}
    return {**chosen, "vision_feature_layer": layers(fact, vision)}


def _llava_processor(vision: Vision, strategy: str | None) -> Arguments:
    return {
        "patch_size": vision.patch,
        STRATEGY: strategy,
        "num_additional_image_tokens": vision.prefix,
    }


def _patches(vision: Vision, side: int) -> int:
    return (side // vision.patch) ** 2 * vision.per_place


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}
