"""From settings to what is trained: the tower, what is put on it, its parameters' rates, the length of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dino_tower.adapters.adapted import Adapted, build_head, freeze_unused
from dino_tower.adapters.settings import Config
from dino_tower.errors import ConfigError
from dino_tower.families import family_of
from dino_tower.peft_adapter import Base, base_path, weights_digest, wrap
from dino_tower.tower import Tower, load_tower

FULL_SHARE = 1 / 20  # of the head's rate, for a tower that is trained as a whole: it has to stay a tower


@dataclass(frozen=True)
class Built:
    """The network with what belongs to it. tower: for its processor and name; its model is inside `model`."""

    tower: Tower
    model: Adapted
    base: Base
    size: int  # pixels of a side of the views
    counts: dict[str, int]  # of parameters

    def normalise(self, pixels: Tensor, device: torch.device) -> Tensor:
        """uint8 [B, S, S, 3] to normalised float [B, 3, S, S] on the device."""
        mean, std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (self.tower.processor.image_mean, self.tower.processor.image_std)
        )
        floats = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        return (floats - mean) / std


@dataclass(frozen=True)
class Plan:
    """The length of a run."""

    steps: int
    steps_per_epoch: int
    global_batch: int
    warmup: int

    def rate(self, step: int) -> float:
        """Share of the peak learning rate: linear from 0, then half a cosine to 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


def make_plan(config: Config, images: int, world: int) -> Plan:
    """Raises ConfigError where the data is smaller than one global batch."""
    per_step = world * config.compute.accumulate
    global_batch = config.batch_size * per_step
    steps_per_epoch = images // global_batch
    if steps_per_epoch < 1:
        raise ConfigError(
            f"{images} pictures are fewer than one global batch of {global_batch} ({config.batch_size} x {world} "
            f"processes x {config.compute.accumulate} accumulated); set --batch-size {max(1, images // per_step)} or "
            "less"
        )
    steps = config.steps if config.steps is not None else config.epochs * steps_per_epoch
    return Plan(steps, steps_per_epoch, global_batch, round(config.optim.warmup * steps))


def build(config: Config, classes: tuple[str, ...]) -> Built:
    """Load the tower, put the adapter on it and the head behind it; only what is to be trained asks for gradients.

    Raises ConfigError for a tower, method, head or size that cannot work.
    """
    tower = load_tower(config.tower)
    size = view_size(tower, config.size)
    whole = sum(p.numel() for p in tower.model.parameters())
    base = Base(config.tower, base_path(config.tower), weights_digest(tower.model), config.method)
    outputs = config.head.bins if config.task == "depth" else len(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head, which = build_head(
            config.head.kind, config.task, tower, outputs, config.head.channels, config.head.dropout
        )
    model: nn.Module = tower.model
    if config.method == "full":
        if not _can_be_written(tower):
            raise ConfigError(f"--method full writes a tower of transformers or timm, not a {tower.family}; take none")
        free(tower)
    elif config.method == "none":
        model.requires_grad_(False)
    else:
        model = wrap(model, config.method, config.peft, config.seed)
    adapted = Adapted(model, head, which, frozen=config.method == "none")
    freeze_unused(adapted, size)
    counts = {
        "tower": whole,
        "trained_in_tower": sum(p.numel() for p in adapted.tower.parameters() if p.requires_grad),
        "head": sum(p.numel() for p in head.parameters()),
    }
    return Built(tower, adapted, base, size, counts)


def free(tower: Tower) -> None:
    """Let all of a tower be trained, but a LayerScale that is 1: it is none, and what it is shipped as has none."""
    for name, p in tower.model.named_parameters():
        p.requires_grad_(not (name.endswith("lambda1") and bool((p == 1).all())))


def view_size(tower: Tower, asked: int | None) -> int:
    """Pixels of a side of the views; ConfigError for what the tower cannot take."""
    crop = getattr(tower.processor, "crop_size", None) or getattr(tower.processor, "size", None) or {}
    size = asked or crop.get("height") or crop.get("shortest_edge")
    if size is None:
        raise ConfigError(f"{tower.name}: its processor names no size; give --size N")
    if tower.native is not None and tower.native != (size, size):
        raise ConfigError(f"--size {size}: {tower.name} takes {' x '.join(map(str, tower.native))} pixels only")
    is_grid = family_of(tower.model).attention is not None
    if size < tower.patch or (is_grid and size % tower.patch):
        raise ConfigError(f"--size {size} is not a multiple of the patch of {tower.patch} pixels")
    return int(size)


def _can_be_written(tower: Tower) -> bool:
    return hasattr(tower.model, "save_pretrained") or tower.family.startswith("timm ")


def parameter_groups(model: Adapted, config: Config) -> list[dict[str, Any]]:
    """For the optimiser: head and tower, matrices with weight decay and vectors without. `peak`: the highest rate."""
    share = FULL_SHARE if config.method == "full" else 1.0
    tower_lr = config.optim.lr * share if config.optim.tower_lr is None else config.optim.tower_lr
    groups = []
    for module, peak in ((model.head, config.optim.lr), (model.tower, tower_lr)):
        parameters = [p for p in module.parameters() if p.requires_grad]
        for chosen, decay in (
            ([p for p in parameters if p.ndim > 1], config.optim.weight_decay),
            ([p for p in parameters if p.ndim <= 1], 0.0),
        ):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "peak": peak})
    return groups
