"""Which settings a VLM of transformers needs for a tower, and a warning where the two misunderstand each other.

A VLM does not look at its tower: it cuts off one token, or none, and takes the rest for patches. Registers become image
tokens, a tower without a class token loses a patch, and nobody says so. The facts are in `facts.py`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from dino_tower.errors import ConfigError, unknown
from dino_tower.vlm.amiss import processor_amiss, reload_amiss, settings_amiss, tokens_amiss, weights_amiss
from dino_tower.vlm.dense import check_dense
from dino_tower.vlm.facts import ANY_TOKENS, DENSE, LIKE, VLMS, Dense, Vlm
from dino_tower.vlm.settings import STRATEGY, dropped, settings
from dino_tower.vlm.vision import Vision, vision_of

NORM_UNUSED = (
    "the patches are read before the tower's final norm, which gets no gradient: freeze it, or DDP takes it for unused"
)


@dataclass(frozen=True)
class ImageTokens:
    """What a VLM makes of a tower: the number of its image tokens, and the arguments that make them right.

    image_tokens: of a picture of image_size x image_size pixels; of one tile where the VLM cuts pictures into tiles
        (tokens between lines and tiles come on top); for VisionEncoderDecoderModel, of the decoder's memory.
    config, processor, image_processor: arguments for the VLM's config, its processor and its image processor.
    module: where the tower sits: `vlm.get_submodule(module).load_state_dict(tower.model.state_dict())`.
    warnings: what goes wrong with these settings all the same. notes: what to know before the tower is trained.
    """

    vlm: str
    tower: str
    image_size: int
    image_tokens: int
    module: str
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    image_processor: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def vision_feature_select_strategy(self) -> str | None:
        """`default`: the first token is cut off; `full`: none is; None: the VLM has no such setting."""
        return self.config.get(STRATEGY)

    @property
    def vision_feature_layer(self) -> int | list[int] | None:
        """The hidden states that the VLM reads; None: it has no such setting."""
        return self.config.get("vision_feature_layer")

    def __str__(self) -> str:
        lines = [f"{self.vlm} on {self.tower}, {self.image_size} px: {self.image_tokens} image tokens"]
        for name in ("config", "processor", "image_processor"):
            arguments = getattr(self, name)
            lines += [f"  {name}: " + ", ".join(f"{k}={v!r}" for k, v in arguments.items())] * bool(arguments)
        remarks = [f"  warning: {text}" for text in self.warnings] + [f"  note: {text}" for text in self.notes]
        return "\n".join([*lines, f"  tower in: {self.module}", *remarks])


def image_tokens_for(vlm: Any, tower: Any, image_size: int | None = None) -> ImageTokens:
    """The settings that a VLM class needs for a tower.

    vlm: a class of `facts.VLMS`, its name, or a model or config of it (whose settings do not matter here).
    tower: a Tower, a vision model or config of transformers, or a TOWER by name. image_size: pixels; default: what the
    tower's processor crops to, or the tower's native size where the VLM or the tower takes no other.
    Raises ConfigError, with the reason, where the two do not work together.
    """
    name, fact = _find(vlm, VLMS)
    vision = vision_of(tower)
    if fact.refuses:
        raise ConfigError(f"{name} takes no foreign tower: {fact.refuses}; LlavaForConditionalGeneration does")
    if fact.reads == "pooled" and not vision.pooled:
        raise ConfigError(f"{name} wants one pooled vector a picture, and this {vision.family} gives none")
    side = _image_size(name, fact, vision, image_size)
    strategy = None if fact.strategy is None else "default" if vision.cls else "full"
    extra = vision.prefix - dropped(fact, strategy)
    if fact.grid and extra:
        raise ConfigError(
            f"{name} wants the square of patches and nothing else, and gets {vision.named(extra)} as well;"
            f" use a tower without {'registers' if fact.strategy else 'a class token (siglip_vision_model)'}"
        )
    if fact.grid and vision.per_place > 1:
        raise ConfigError(f"{name} wants one token a patch, and this {vision.family} interleaves {vision.per_place}")
    made = settings(fact, vision, strategy, side)
    return ImageTokens(
        vlm=name,
        tower=vision.family,
        image_size=side,
        image_tokens=made.tokens,
        module=fact.module,
        config=made.config,
        processor=made.processor,
        image_processor=made.image_processor,
        warnings=() if name in ANY_TOKENS else (*tokens_amiss(name, vision, extra), *reload_amiss(name, fact)),
        notes=(NORM_UNUSED,) if _reads_before_the_norm(fact, vision) else (),
    )


def check_vlm(vlm: Any, tower: Any, processor: Any = None, image_size: int | None = None) -> list[str]:
    """Warn where a VLM silently misuses a tower; the warnings are also returned.

    vlm: as for `image_tokens_for`, or a class of `facts.DENSE`. A config is judged by its settings, a model by its
    settings and (where `tower` is a Tower or a model) its weights, a class by its defaults.
    tower, image_size: as for `image_tokens_for`. processor: the VLM's processor, to be judged as well.
    Raises ConfigError where the combination cannot work: transformers would fail later, with a message about shapes.
    """
    known: dict[str, Vlm | Dense] = {**VLMS, **DENSE}
    name, fact = _find(vlm, known)
    config = None if isinstance(vlm, (str, type)) else getattr(vlm, "config", vlm)
    found: list[str] = []
    if isinstance(fact, Dense):
        check_dense(name, config, tower)
    else:
        wanted, vision = image_tokens_for(name, tower, image_size), vision_of(tower)
        found += settings_amiss(name, fact, vision, config, wanted)
        if processor is not None and getattr(config, "model_type", "") in LIKE:  # its projector counts otherwise
            processor = processor.image_processor
        found += processor_amiss(processor, vision, wanted) if processor is not None else []
    # an adapter changes what its weights do and their names: nothing to compare
    if config is not vlm and config is not None and not hasattr(vlm, "peft_config"):
        found += weights_amiss(vlm.get_submodule(fact.module), tower, fact.module)
    for text in found:
        warnings.warn(text, UserWarning, stacklevel=2)
    return found


def _reads_before_the_norm(fact: Vlm, vision: Vision) -> bool:
    """CLIP norms its class token only, on the way to the pooled vector."""
    return fact.reads == "layer" or (fact.reads == "last" and vision.family == "clip_vision_model")


def _image_size(name: str, fact: Vlm, vision: Vision, asked: int | None) -> int:
    side = asked or (vision.image_size if fact.native else vision.crop) or vision.image_size
    if side != vision.image_size and (fact.native or not vision.layout.any_size):
        who = name if fact.native else f"a {vision.family} in a VLM"
        raise ConfigError(f"{who} takes pictures of the tower's native {vision.image_size} px only, not {side}")
    if side % vision.patch:
        raise ConfigError(f"{side} px are not a multiple of the patch size {vision.patch}")
    grid = side // vision.patch
    if grid % fact.merge:
        raise ConfigError(
            f"{name} merges {fact.merge} x {fact.merge} patches, and {side} px make a grid of {grid} x {grid};"
            f" set image_size to {(grid - 1) * vision.patch} or {(grid + 1) * vision.patch}"
        )
    return side


def _find(client: Any, facts: Any) -> tuple[str, Any]:
    kind = getattr(getattr(client, "config_class", None) or getattr(client, "config", client), "model_type", client)
    for name, fact in facts.items():
        if name == client or fact.model_type == (LIKE.get(kind, kind) if isinstance(kind, str) else kind):
            return name, fact
    shown = client if isinstance(client, str) else getattr(client, "__name__", type(client).__name__)
    raise unknown("VLM class", shown, facts)
