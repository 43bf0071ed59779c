"""Every setting of a pretraining run, with its meaning: what a preset, the command line and `config.yaml` speak of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dino_tower.pretrain.crops.views import CropsConfig
from dino_tower.pretrain.network.lora_settings import LoraConfig
from dino_tower.pretrain.objectives.control_settings import ClipConfig, SimclrConfig, SupervisedConfig
from dino_tower.pretrain.objectives.masked_settings import IjepaConfig, MaeConfig
from dino_tower.pretrain.objectives.settings import DistilConfig, GramConfig, IbotConfig, TermsConfig
from dino_tower.sources import SourceOptions

LR_SCALING = {
    "linear_256": lambda batch: batch / 256,
    "sqrt_1024": lambda batch: (batch / 1024) ** 0.5,
    "none": lambda batch: 1.0,
}


@dataclass(frozen=True)
class ModelConfig:
    """The backbone."""

    width: int | None = None
    """Features of a token, in place of the architecture's."""
    depth: int | None = None
    """Number of blocks, in place of the architecture's."""
    heads: int | None = None
    """Attention heads, in place of the architecture's."""
    drop_path: float = 0.1
    """Stochastic depth of the last block (student only); the blocks before rise to it linearly."""
    drop_path_uniform: bool = False
    """The same stochastic depth in every block instead, as DINOv2 has it."""
    layerscale: float = 1.0
    """Initial LayerScale; exactly 1 means none."""
    swiglu: bool = False
    """Gated MLPs in the blocks, of two thirds of the hidden width."""
    token_std: float = 0.02
    """Standard deviation of the initial class token and registers; DINOv2 has 1e-6."""
    rope_rescale: float | None = None
    """For _rope: the student's patch coordinates are multiplied by a number between 1 / r and r, drawn for each forward
    pass, so that the tower serves many image sizes; this is r, and DINOv3 has 2."""
    positions: Literal["native", "reference"] = "native"
    """How position tables are resized: as the exported class does, or as DINO's own code did."""


@dataclass(frozen=True)
class HeadConfig:
    """The projection head."""

    prototypes: int = 65536
    """Outputs of the head (DINO calls it out_dim)."""
    hidden: int = 2048
    """Width of the two hidden layers."""
    bottleneck: int = 256
    """Width in front of the prototypes."""
    norm_last_layer: bool = True
    """Keep the prototypes' gain at 1."""
    weight_norm: bool = True
    """Prototypes are unit vectors times a gain; false: they are as they are, as DINOv3 has them."""
    batch_norm: bool = False
    """Batch norm in the hidden layers; helps small data leave the uniform teacher."""
    freeze_epochs: float = 1.0
    """Epochs during which the prototypes do not move."""


@dataclass(frozen=True)
class LossConfig:
    """Temperatures and centring."""

    student_temp: float = 0.1
    """What the student's answers are divided by before the softmax."""
    teacher_temp: float = 0.07
    """Teacher temperature after its warm-up."""
    teacher_temp_start: float = 0.04
    """Teacher temperature of the first epoch."""
    teacher_temp_warmup: int = 30
    """Epochs from start to final temperature, in steps of one epoch."""
    centring: Literal["centre", "sinkhorn"] = "centre"
    """What keeps the teacher from one answer for all: a running mean taken off its logits, or Sinkhorn-Knopp, by which
    the pictures of a batch, of all processes, use every prototype equally often."""
    centre_momentum: float = 0.9
    """Share of the old centre that a step keeps."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and its schedules."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    beta2: float = 0.999
    """AdamW's memory of squared gradients; MAE has 0.95."""
    base_lr: float = 5e-4
    """Learning rate before `lr_scaling`; the resulting peak is printed at the start."""
    lr_scaling: Literal["linear_256", "sqrt_1024", "none"] = "linear_256"
    """Peak lr: base_lr x global batch / 256, base_lr x sqrt(global batch / 1024), or base_lr itself."""
    min_lr: float = 1e-6
    """Learning rate at the end; not scaled."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After its warm-up the learning rate falls to min_lr, or stays, as DINOv3 has it."""
    warmup_epochs: float = 10.0
    """Epochs in which the learning rate rises from 0 to its peak."""
    weight_decay: float = 0.04
    """At the start; biases, norms and other vectors have none."""
    weight_decay_end: float = 0.4
    """At the end; a cosine leads there."""
    clip: float = 3.0
    """Largest gradient norm; 0 switches clipping off."""
    clip_mode: Literal["per_parameter", "global", "per_module"] = "per_parameter"
    """The norm that is limited: each parameter's own, as DINO does, all gradients' together, or the backbone's and each
    head's, as DINOv2 does."""
    layer_decay: float = 1.0
    """Learning rate of each block, times that of the block above it."""
    freeze_backbone_epochs: float = 0.0
    """Epochs at the start in which the heads alone learn: new ones on a backbone that is good already."""
    backbone_lr: float = 1.0
    """Learning rate of the backbone, times that of the heads."""
    patch_embed_lr: float = 1.0
    """Learning rate of the patch embedding, times what it would have otherwise; DINOv2 has 0.2."""


@dataclass(frozen=True)
class TeacherConfig:
    """The moving average."""

    momentum: float = 0.996
    """Share of the teacher that a step keeps, at the start."""
    momentum_end: float = 1.0
    """The same at the end; a cosine leads there."""


@dataclass(frozen=True)
class PixelsConfig:
    """Normalisation: the mean and standard deviation of the start or ImageNet's, others, or measured ones."""

    mean: tuple[float, float, float] | None = None
    """Of RGB in [0, 1]; none: those of --init-from, or ImageNet's."""
    std: tuple[float, float, float] | None = None
    """As mean; give both or neither."""
    measure: bool = False
    """Measure mean and std on 1,000 images before the first step."""


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed. None of it changes what is learned beyond rounding but `accumulate`, where something
    compares the pictures of a batch: batch norm, Sinkhorn-Knopp, KoLeo, CLIP, SimCLR."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    """Of the forward pass: bf16 or fp16 (GPUs only); no: fp32. Weights stay fp32."""
    accumulate: int = 1
    """Batches of each process that make one optimiser step."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """eager is about twice as fast on CPUs in bf16 with the short sequences of small views; sdpa everywhere else."""
    activation_checkpointing: bool = False
    """Recompute activations in backward: less memory, a third more time."""
    compile: bool = False
    """torch.compile the backbones."""
    cpu: bool = False
    """Stay on the CPU even where there is a GPU."""


@dataclass(frozen=True)
class MonitorConfig:
    """What is watched while the run goes on."""

    log_every: int = 10
    """Steps between rows of log.jsonl."""
    minutes: float = 3.0
    """Minutes between looks at RankMe, pictures and, with labels, k-NN; 0 switches them off."""
    knn_images: int = 1000
    """Images of the online k-NN, each judged by the others, which needs labels, and of RankMe, which does not."""
    pictures: int = 4
    """Images whose attention and PCA are drawn through time."""
    tracker: str = "auto"
    """An accelerate tracker (tensorboard, wandb, mlflow, ...), none, or auto: tensorboard where it is installed."""


@dataclass(frozen=True)
class FaultsConfig:
    """What a run puts up with."""

    max_skipped: float = 0.1
    """Images that may be unreadable: a share below 1, or a number."""
    max_bad_steps: int = 10
    """Steps with a non-finite loss or gradient in a row before going back to the last checkpoint."""
    max_rollbacks: int = 3
    """Times a run may go back before it stops."""
    keep_last: int = 2
    """Checkpoints kept, newest first."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 keeps none of them."""


@dataclass(frozen=True)
class Config:
    """One pretraining run."""

    data: tuple[str, ...] = ()
    """SOURCE: a folder, hf:NAME, tar:PATTERN, a .csv or .txt list, or scenes; repeat to mix."""
    output: str = ""
    """Directory of the run."""
    preset: str = "dino_vits16"
    """Recipe to start from: a name, or a YAML file."""
    arch: str = "vits16"
    """Backbone: vit{t,s,b,l}{8,14,16} with _reg4, _rope, _rope_reg4, _siglip or _clip, resnet8, resnet18, resnet50;
    or tower: what --init-from is, for an adapter inside it (--lora.method)."""
    objective: str = "dino"
    """What is learned: dino, ibot, dinov2, distil, distil_head, mae, ijepa, clip, simclr or supervised; each a sum of
    terms, whose weights --terms.* can change."""
    stage: Literal["main", "hires"] = "main"
    """hires: go on at a higher resolution from --init-from; on the command line it changes the settings of that run, or
    of the preset, accordingly: 518 pixels where there were 224, 10,000 steps, a tenth of the learning rate."""
    init_from: str | None = None
    """Start from the weights of a run (RUN, RUN@teacher), a directory or a Hub checkpoint of the same class."""
    init_heads: bool = True
    """Take over a run's heads and state, too, as far as the new run has the same."""
    epochs: int = 100
    """Passes over the data."""
    steps: int | None = None
    """Optimiser steps, in place of epochs."""
    batch_size: int = 64
    """Images per process and micro-batch."""
    seed: int = 0
    """Of everything drawn: weights, order, crops, masks, dropped paths."""
    workers: int = 2
    """Loader processes for each training process; 0 loads in the training process."""
    checkpoint_every: int = 500
    """Optimiser steps between checkpoints; there is always one at the end."""
    resume: Literal["no", "true", "auto"] = "no"
    """Continue the run in --output; auto: resume or start."""
    print_config: bool = False
    """Print the resolved settings and stop."""
    recipe_batch: int = 1024
    """Global batch the recipe was made for; a different one is warned about."""
    recipe_epochs: int = 0
    """Epochs the warm-ups were made for; filled in from the preset."""
    source: SourceOptions = field(default_factory=SourceOptions)
    crops: CropsConfig = field(default_factory=CropsConfig)
    pixels: PixelsConfig = field(default_factory=PixelsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    terms: TermsConfig = field(default_factory=TermsConfig)
    ibot: IbotConfig = field(default_factory=IbotConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    gram: GramConfig = field(default_factory=GramConfig)
    mae: MaeConfig = field(default_factory=MaeConfig)
    ijepa: IjepaConfig = field(default_factory=IjepaConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    simclr: SimclrConfig = field(default_factory=SimclrConfig)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
