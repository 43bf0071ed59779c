"""Every setting of a text alignment, with its meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dino_tower.sources import SourceOptions


@dataclass(frozen=True)
class TextConfig:
    """The text encoder."""

    encoder: str | None = None
    """A transformers directory with its tokenizer; none: a small one is trained here, on whole words."""
    frozen: bool = False
    """Hold the text encoder of a directory: only the layer behind it is trained."""
    pooling: Literal["auto", "mean", "first", "last", "pooler"] = "auto"
    """What of the words becomes the text; auto: the pooled output of CLIP and SigLIP, the last word of a language
    model, else the mean."""
    length: int = 64
    """Words of a text that are read at most."""
    width: int = 128
    """Of the small encoder: features of a word."""
    depth: int = 2
    """Of the small encoder: number of blocks."""
    heads: int = 4
    """Of the small encoder: attention heads."""
    vocabulary: int = 30_000
    """Of the small encoder: the most frequent words that it knows."""


@dataclass(frozen=True)
class HeadConfig:
    """What is trained on top of the frozen tower."""

    blocks: int = 2
    """Transformer blocks; 0: the tower's tokens as they are, with a last norm."""


@dataclass(frozen=True)
class LossConfig:
    """How pictures and texts are compared."""

    name: Literal["clip", "siglip"] = "clip"
    """A softmax over the batch, or one sigmoid for each pair."""
    texts: int = 1
    """Texts of a picture in each step."""
    draw: Literal["all", "caption"] = "all"
    """Drawn from all that a picture has, or its caption alone: scenes have thirty phrases beside one caption."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, a linear warm-up and a cosine to 0."""

    lr: float = 1e-3
    """Peak learning rate."""
    text_lr: float | None = None
    """That of the text encoder; none: lr for one that starts untrained, a hundredth of it for one from a directory."""
    weight_decay: float = 0.05
    """On matrices; norms, biases and the temperature have none."""
    warmup: float = 0.1
    """Share of the steps."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed."""

    precision: Literal["no", "bf16"] = "no"
    """Of what is trained; the frozen tower computes in fp32."""
    cpu: bool = False
    """Stay on the CPU even where there is a GPU."""


@dataclass(frozen=True)
class MonitorConfig:
    """What is watched while the run goes on."""

    log_every: int = 10
    """Steps between rows of log.jsonl."""


@dataclass(frozen=True)
class Config:
    """Text alignment of a frozen tower."""

    tower: str = ""
    """TOWER, which stays as it is: a class of transformers."""
    data: tuple[str, ...] = ()
    """SOURCE of pictures with captions; repeat it to mix several."""
    output: str = ""
    """Directory of the run, and of the result."""
    resume: Literal["no", "true", "auto"] = "no"
    """Continue the run in --output; auto: start or continue."""
    print_config: bool = False
    """Resolve the settings, print them, stop."""
    epochs: int = 10
    """Passes over the pictures."""
    steps: int | None = None
    """Optimiser steps, in place of epochs."""
    batch_size: int = 256
    """Pictures of a step in one process; a softmax wants many."""
    size: int | None = None
    """Resize whole pictures to this many pixels square; none: what the tower's processor does, which may crop."""
    cache_gib: float = 4.0
    """Keep the frozen tokens in memory where they take no more than this; 0: compute them in each step."""
    seed: int = 0
    """Of everything that is drawn."""
    workers: int = 0
    """Processes that read pictures."""
    checkpoint_every: int = 500
    """Optimiser steps between checkpoints."""
    text: TextConfig = field(default_factory=TextConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    source: SourceOptions = field(default_factory=SourceOptions)
