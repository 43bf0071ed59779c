"""Every setting of an adaptation, with its meaning: what the command line and config.yaml speak of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dino_tower.peft_methods import PeftSettings
from dino_tower.sources import SourceOptions


@dataclass(frozen=True)
class ViewsConfig:
    """How a picture is cut for training."""

    scale: tuple[float, float] = (0.4, 1.0)
    """Share of the picture's area that a view shows, between these two."""
    ratio: tuple[float, float] = (0.75, 1.3333)
    """Width by height of what it shows, between these two."""
    flip: float = 0.5
    """Share of views that are mirrored."""


@dataclass(frozen=True)
class TargetConfig:
    """What is to be learned."""

    column: str | None = None
    """segment from hf: or a list: the column (tar: the ending of the member) that holds the masks."""
    classes: str | None = None
    """segment with --target.column: file that names the classes, one a line from 0 on."""
    low: float = 0.001
    """depth: metres below which labels do not count."""
    high: float = 10.0
    """depth: metres above which labels do not count."""


@dataclass(frozen=True)
class HeadConfig:
    """What is trained on top of the tower."""

    kind: Literal["linear", "conv", "pyramid"] = "linear"
    """linear: one map of each patch (classify: of class token and mean patch); conv: two convolutions; pyramid: UperNet
    over four layers."""
    channels: int = 256
    """Of conv and pyramid: features inside the head."""
    bins: int = 256
    """Of depth: bins between target.low and target.high."""
    dropout: float = 0.0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, a linear warm-up and a cosine to 0."""

    lr: float = 1e-3
    """Peak learning rate of the head."""
    tower_lr: float | None = None
    """Peak learning rate inside the tower; by default that of the head, and a twentieth of it with --method full."""
    weight_decay: float = 0.01
    """Of matrices and kernels; vectors have none."""
    warmup: float = 0.1
    """Share of the steps during which the rates rise from 0."""
    clip: float = 1.0
    """Largest norm of all gradients together; 0 switches clipping off."""


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: int = 1
    """Batches of each process that make one optimiser step."""
    cpu: bool = False
    """Stay on the CPU even where there is a GPU."""


@dataclass(frozen=True)
class MonitorConfig:
    """What is watched while the run goes on."""

    log_every: int = 10
    """Steps between rows of log.jsonl."""
    validate: bool = True
    """Score the test split after the last step."""
    tracker: str = "auto"
    """An accelerate tracker (tensorboard, wandb, mlflow, ...), none, or auto: tensorboard where it is installed."""


@dataclass(frozen=True)
class FaultsConfig:
    """What a run puts up with."""

    max_skipped: float = 0.1
    """Pictures that may be unreadable: a share below 1, or a number."""
    max_bad_steps: int = 10
    """Steps in a row with a loss or gradient that is no number; one more ends the run."""
    keep_last: int = 2
    """Checkpoints kept, newest first."""


@dataclass(frozen=True)
class Config:
    """One adaptation of a tower to classes, to classes of pixels, or to depth."""

    tower: str = ""
    """TOWER: a directory, a Hub id, a run, timm:NAME, builtin:scenes, ..."""
    task: Literal["classify", "segment", "depth"] = "classify"
    data: tuple[str, ...] = ()
    """SOURCE with labels, masks or depth; see docs/adapt.md."""
    output: str = ""
    """Directory of the run, and of the adapter."""
    method: str = "lora"
    """A PEFT method; none: the tower is frozen; full: all of it is trained."""
    merge: bool = False
    """Also write OUTPUT/merged: a plain tower with the adapter in its weights."""
    size: int | None = None
    """Pixels of a side of the training views; by default what the tower's processor cuts."""
    epochs: int = 10
    """Passes over the data."""
    steps: int | None = None
    """Optimiser steps, in place of epochs."""
    batch_size: int = 16
    """Pictures per process and micro-batch."""
    seed: int = 0
    workers: int = 2
    """Loader processes for each training process; 0 loads in the training process."""
    checkpoint_every: int = 200
    """Optimiser steps between checkpoints; there is always one at the end."""
    resume: Literal["no", "true", "auto"] = "no"
    """Continue the run in --output; auto: resume or start."""
    print_config: bool = False
    """Print the resolved settings and stop."""
    source: SourceOptions = field(default_factory=SourceOptions)
    target: TargetConfig = field(default_factory=TargetConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    peft: PeftSettings = field(default_factory=PeftSettings)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
