"""Every setting of the two stages that make a VLM, with its meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dino_tower.peft_methods import PeftSettings


@dataclass(frozen=True)
class ProjectorConfig:
    """What stands between the tower and the language model; what is left out is the projector's own default."""

    kind: str = "mlp"
    """linear, mlp (LLaVA's), pixel-shuffle, c-abstractor or resampler."""
    tokens: int | None = None
    """c-abstractor, resampler: image tokens of a picture."""
    factor: int | None = None
    """pixel-shuffle: factor x factor patches make one token."""
    depth: int | None = None
    """c-abstractor: blocks before and after the pooling."""
    hidden: int | None = None
    """c-abstractor: width of its blocks."""
    heads: int | None = None
    """resampler: attention heads."""


@dataclass(frozen=True)
class LanguageConfig:
    """What the language model learns in the second stage."""

    method: Literal["lora", "none", "full"] = "lora"
    rank: int = 128
    """lora: rank; 128, and alpha of twice that, are LLaVA 1.5's (scripts/v1_5/finetune_lora.sh)."""
    alpha: int = 256
    dropout: float = 0.05


@dataclass(frozen=True)
class StageConfig:
    """One stage: AdamW, a linear warm-up and a cosine to 0."""

    data: tuple[str, ...] = ()
    """Conversations for this stage alone, in place of --data."""
    epochs: float = 1.0
    """Passes over them."""
    steps: int | None = None
    """Optimiser steps, in place of epochs; 0 leaves the stage out."""
    lr: float = 1e-3
    """Peak learning rate."""
    tower_lr: float | None = None
    """Second stage: that of the tower's own weights and adapters; none: a tenth of lr."""
    batch_size: int = 8
    """Conversations per process and micro-batch."""
    accumulate: int = 1
    """Batches of each process that make one optimiser step."""
    warmup: float = 0.03
    """Share of the steps."""
    weight_decay: float = 0.0


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    cpu: bool = False
    """Stay on the CPU even where there is a GPU."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""


@dataclass(frozen=True)
class MonitorConfig:
    """What is watched while the run goes on."""

    log_every: int = 10
    """Steps between rows of log.jsonl."""


@dataclass(frozen=True)
class Config:
    """A VLM from a tower and a language model, trained on conversations."""

    tower: str = ""
    """TOWER: a directory, a Hub id, a run, a fused tower, builtin:scenes, ..."""
    task: Literal["vlm"] = "vlm"
    data: tuple[str, ...] = ()
    """JSON (or JSON lines) in LLaVA's format."""
    images: str | None = None
    """Folder that the pictures' paths begin in; by default that of the JSON file."""
    language_model: str | None = None
    """A causal language model of transformers with its tokenizer: a directory or Hub id."""
    vlm: str | None = None
    """A LLaVA to give the tower to, in place of --language-model: its language model and tokenizer go on."""
    output: str = ""
    """Directory of the run, and of the VLM."""
    method: str = "none"
    """What the tower learns in the second stage: a PEFT method; none: it is frozen; full: all of it."""
    size: int | None = None
    """Pixels of a side; by default what the tower's processor cuts."""
    layer: int | None = None
    """The tower's layer that is read; by default the last."""
    patches_only: bool = False
    """Put the tower in as its normed patches alone; done by itself for a tower with registers."""
    length: int = 2048
    """Tokens of a conversation; what is longer is cut off at the end."""
    seed: int = 0
    workers: int = 0
    """Loader processes for each training process."""
    checkpoint_every: int = 500
    """Optimiser steps between checkpoints."""
    resume: Literal["no", "true", "auto"] = "no"
    """Continue the run in --output; auto: resume or start."""
    print_config: bool = False
    """Print the resolved settings and stop."""
    stage1: StageConfig = field(default_factory=StageConfig)
    stage2: StageConfig = field(default_factory=lambda: StageConfig(lr=2e-4))
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    peft: PeftSettings = field(default_factory=PeftSettings)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
