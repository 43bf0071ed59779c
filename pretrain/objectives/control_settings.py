"""The settings of the objectives that tell what self-distillation adds: clip, simclr and supervised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dino_tower.errors import ConfigError

if TYPE_CHECKING:
    from dino_tower.pretrain.settings import Config

BYTES = 258  # words of a vocabulary that has merged nothing: 256 bytes, start and end


@dataclass(frozen=True)
class ClipConfig:
    """Pictures against their captions: the text tower that learns beside the tower, and the loss. CLIP's own sizes."""

    loss: Literal["clip", "siglip"] = "clip"
    """CLIP's softmax over all captions of the batch, or SigLIP's sigmoid for each pair, with a learned bias."""
    captions: Literal["first", "any"] = "first"
    """What is said of a picture: its caption, or one of all texts that the data has for it, drawn anew each time."""
    views: int = 1
    """Global views that are compared with the caption: 1, as in CLIP, or both."""
    vocabulary: int = 49408
    """Words of the tokenizer, a byte-pair encoding learned from the data's captions; 258 are start, end and bytes."""
    read: int = 10_000
    """Pictures, evenly spread, whose captions it is learned from."""
    length: int = 77
    """Words of a caption that are read at most, its start and end among them."""
    width: int = 512
    """Features of the text tower."""
    depth: int = 12
    """Its blocks."""
    heads: int = 8
    embedding: int = 512
    """Features in which pictures and captions are compared."""


@dataclass(frozen=True)
class SimclrConfig:
    """Two views of a picture against those of all others: the projection and the temperature."""

    temperature: float = 0.1
    hidden: int = 2048
    """Width of the projection's hidden layer."""
    outputs: int = 128
    """Features in which views are compared."""
    batch_norm: bool = True
    """In the projection, over the batch of all processes."""


@dataclass(frozen=True)
class SupervisedConfig:
    """Classification of the data's labels, which must be there."""

    smoothing: float = 0.1
    """Share of the target that all classes divide between them."""
    views: int = 1
    """Global views that learn from the label: 1, or both."""


def _above_zero(section: str, numbers: dict[str, float]) -> None:
    for key, value in numbers.items():
        if value <= 0:
            raise ConfigError(f"{section}.{key} is {value}; it must be above 0")


def _one_or_two(section: str, views: int) -> None:
    if views not in (1, 2):
        raise ConfigError(f"{section}.views is {views}; there are two global views: give 1 or 2")


def _several_pictures(config: Config, name: str, what: str) -> None:
    if config.batch_size < 2:
        raise ConfigError(f"terms.{name} {what}: --batch-size must be 2 or more, and helps the larger it is")


def check_clip(config: Config) -> None:
    """Raise ConfigError, naming the key, for a text tower that cannot be, and for a batch without other captions."""
    clip = config.clip
    _several_pictures(config, "clip", "compares a picture with the captions of others")
    _one_or_two("clip", clip.views)
    _above_zero("clip", {key: getattr(clip, key) for key in ("read", "width", "depth", "heads", "embedding")})
    if clip.width % clip.heads:
        raise ConfigError(f"clip.width {clip.width} does not divide into clip.heads {clip.heads}")
    if clip.vocabulary < BYTES:
        raise ConfigError(f"clip.vocabulary is {clip.vocabulary}; {BYTES} or more: 256 bytes, a start and an end")
    if clip.length < 3:
        raise ConfigError(f"clip.length is {clip.length}; 3 or more: a word between a start and an end")


def check_simclr(config: Config) -> None:
    """Raise ConfigError, naming the key, for a projection that cannot be, and for a batch without other pictures."""
    simclr = config.simclr
    _several_pictures(config, "simclr", "tells a picture from the others of a batch")
    _above_zero("simclr", {key: getattr(simclr, key) for key in ("temperature", "hidden", "outputs")})


def check_supervised(config: Config) -> None:
    """Raise ConfigError, naming the key. Whether there are labels is asked of the source."""
    _one_or_two("supervised", config.supervised.views)
    if not 0 <= config.supervised.smoothing < 1:
        raise ConfigError(f"supervised.smoothing is {config.supervised.smoothing}; give a share from 0 to below 1")
