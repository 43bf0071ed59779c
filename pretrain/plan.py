"""How long a run is and what every schedule does at each step, settled before the first one.

Warm-ups are given in epochs of the recipe. A run shorter than its recipe compresses them all, so that each keeps its
share; a longer one keeps them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.pretrain.algorithms.schedules import Schedule, constant, cosine, per_step, stepped_warmup
from dino_tower.pretrain.objectives.settings import weights
from dino_tower.pretrain.objectives.term import Rates
from dino_tower.pretrain.settings import LR_SCALING, Config


@dataclass(frozen=True)
class Plan:
    """The length of a run and one value a step of everything that changes."""

    steps: int
    steps_per_epoch: int
    global_batch: int
    images: int
    peak_lr: float
    compression: float
    """Share of the recipe's length that is run; at most 1."""
    frozen_steps: int
    """Steps during which the prototypes do not move."""
    backbone_frozen_steps: int
    """Steps during which the backbone does not."""
    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule
    teacher_temp: Schedule
    warnings: tuple[str, ...]

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.steps / self.steps_per_epoch

    def at(self, step: int) -> Rates:
        """What a term is told about `step`."""
        return Rates(
            teacher_temp=float(self.teacher_temp[step]),
            frozen=step < self.frozen_steps,
            backbone_frozen=step < self.backbone_frozen_steps,
            progress=step / self.steps,
        )

    def rates(self, step: int) -> dict[str, float]:
        """What the schedules say at `step`, for the log."""
        return {
            "lr": float(self.lr[step]),
            "wd": float(self.weight_decay[step]),
            "momentum": float(self.momentum[step]),
            "teacher_temp": float(self.teacher_temp[step]),
        }


def make_plan(config: Config, images: int, world: int) -> Plan:
    """The plan of a run over `images` images on `world` processes.

    Raises ConfigError when the data is smaller than one global batch.
    """
    global_batch = config.batch_size * world * config.compute.accumulate
    steps_per_epoch = images // global_batch
    if steps_per_epoch < 1:
        raise ConfigError(
            f"{images} images are fewer than one global batch of {global_batch} "
            f"({config.batch_size} x {world} processes x {config.compute.accumulate} accumulated); "
            f"set --batch-size {max(1, images // (world * config.compute.accumulate))} or less"
        )
    steps = config.steps if config.steps is not None else config.epochs * steps_per_epoch
    recipe_epochs = config.recipe_epochs or config.epochs
    compression = min(1.0, steps / (recipe_epochs * steps_per_epoch))

    def to_steps(epochs: float) -> int:
        return min(steps, round(epochs * steps_per_epoch * compression))

    optim, loss = config.optim, config.loss
    peak = optim.base_lr * LR_SCALING[optim.lr_scaling](global_batch)
    # the temperature moves once an epoch: an epoch of a compressed run is as much shorter
    temperature_epochs = max(1, round(steps / (steps_per_epoch * compression)))
    temperature = stepped_warmup(
        loss.teacher_temp_start, loss.teacher_temp, loss.teacher_temp_warmup, temperature_epochs
    )
    warmup = to_steps(optim.warmup_epochs)
    falling = optim.schedule == "cosine"
    return Plan(
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        global_batch=global_batch,
        images=images,
        peak_lr=peak,
        compression=compression,
        frozen_steps=to_steps(config.head.freeze_epochs),
        backbone_frozen_steps=to_steps(optim.freeze_backbone_epochs),
        lr=cosine(peak, optim.min_lr, steps, warmup) if falling else constant(peak, steps, warmup),
        weight_decay=cosine(optim.weight_decay, optim.weight_decay_end, steps),
        momentum=cosine(config.teacher.momentum, config.teacher.momentum_end, steps),
        teacher_temp=per_step(temperature, steps),
        warnings=tuple(_warnings(config, global_batch, peak, compression, images)),
    )


def _warnings(config: Config, global_batch: int, peak: float, compression: float, images: int) -> list[str]:
    said = []
    if config.optim.schedule == "cosine" and 0 < peak < config.optim.min_lr:
        said.append(
            f"the peak lr {peak:.3g} is below optim.min_lr, to which it rises: try --optim.min-lr {peak / 100:.1g}"
        )
    if compression < 1:
        said.append(
            f"the run is {compression:.1%} of the recipe's {config.recipe_epochs or config.epochs} epochs: "
            "every warm-up is compressed to keep its share"
        )
    if global_batch != config.recipe_batch:
        rule = {"linear_256": "the learning rate follows", "sqrt_1024": "the learning rate follows"}
        said.append(
            f"global batch {global_batch}, the recipe has {config.recipe_batch}; "
            f"{rule.get(config.optim.lr_scaling, 'the learning rate does not follow')} (optim.lr_scaling)"
        )
    if images < 100_000 and config.head.prototypes > 8192 and {"dino", "ibot"} & weights(config).keys():
        said.append(f"{images} images for {config.head.prototypes} prototypes: try --head.prototypes 4096 or fewer")
    if global_batch < 256 and config.teacher.momentum < 0.996 and images > 1_000_000:
        said.append("small batches want a slower teacher: try --teacher.momentum 0.9995")
    return said


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """The seed of everything random inside one micro-batch of one process (drop path, augmentation on a device)."""
    return int(np.random.SeedSequence((seed, step, micro, rank)).generate_state(1, np.uint64)[0] >> 1)
