"""What an adaptation needs to go on as if it had never stopped, and what it leaves behind.

A checkpoint folder holds adapter.safetensors (tower.safetensors where all of it is trained), head.safetensors,
optimizer.safetensors, state.json and digests.json (SHA-256 of all of them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from dino_tower import __version__
from dino_tower.adapters.adapted import Adapted
from dino_tower.adapters.config import FREE_ON_RESUME
from dino_tower.adapters.settings import Config
from dino_tower.checkpoint import check_digests, load_tensors, save_tensors, write_digests
from dino_tower.errors import ConfigError
from dino_tower.peft_adapter import Base, adapter_weights, load_adapter_weights
from dino_tower.run.state import (
    check_settings,
    copied,
    load_strictly,
    optimizer_tensors,
    put_back_scaler,
    read_state,
    restore_optimizer,
)

FORMAT = 1  # of a checkpoint folder; another number is refused
ADAPTER, TOWER, HEAD, OPTIMIZER = (
    "adapter.safetensors",
    "tower.safetensors",
    "head.safetensors",
    "optimizer.safetensors",
)


@dataclass
class Position:
    """Where a run stands."""

    step: int = 0
    bad_in_a_row: int = 0
    """Steps up to here that changed nothing because something was not finite."""
    first_loss: float = 0.0
    """Of the first logged step: what the alarms measure against."""


@dataclass(frozen=True)
class Trained:
    """Everything that a step changes."""

    model: Adapted
    optimizer: torch.optim.Optimizer
    base: Base
    scaler: torch.amp.GradScaler | None = None
    """Of fp16."""


def snapshot(trained: Trained, position: Position, facts: dict[str, Any]) -> Callable[[Path], None]:
    """Copy the state now; the returned function writes the copy into a folder, whenever it is called."""
    file, tensors = tower_tensors(trained.model)
    tower = copied(tensors)
    head = copied(trained.model.head.state_dict())
    optimizer = copied(optimizer_tensors(trained.model, trained.optimizer))
    scaler = trained.scaler.state_dict() if trained.scaler is not None else None
    state = {"format": FORMAT, "version": __version__, **facts, **asdict(position), "scaler": scaler}
    state["base"] = asdict(trained.base)

    def write(folder: Path) -> None:
        if tower:
            save_tensors(folder / file, tower)
        save_tensors(folder / HEAD, head)
        save_tensors(folder / OPTIMIZER, optimizer)
        (folder / "state.json").write_text(json.dumps(state, indent=1))
        write_digests(folder)

    return write


def tower_tensors(model: Adapted) -> tuple[str, dict[str, Tensor]]:
    """What is learned inside the tower, and its file: an adapter, all weights, or nothing of a frozen one."""
    if isinstance(model.tower, peft.PeftModel):
        return ADAPTER, adapter_weights(model.tower)
    return TOWER, {} if model.frozen else model.tower.state_dict()


def restore(trained: Trained, folder: Path, config: Config, global_batch: int, classes: Sequence[str]) -> Position:
    """Load a checkpoint into the adapter or the tower, the head and the optimiser.

    Raises ConfigError naming the damaged part, for the checkpoint of a run with other settings, of another tower, of
    another global batch, or of other classes.
    """
    check_digests(folder)
    state = read_state(folder, FORMAT, global_batch)
    if state["base"]["digest"] != trained.base.digest:
        raise ConfigError(
            f"{folder}: of an adapter for another base: the weights of {trained.base.tower} are not those it was "
            "started with; put that tower back, or start a new run"
        )
    if state["classes"] != list(classes):
        raise ConfigError(
            f"{folder}: learned {len(state['classes'])} classes, and the data has {len(classes)} now, or other ones: "
            "the head would mean something else; put the data back, or start a new run"
        )
    check_settings(folder, state, Config(), config, (*FREE_ON_RESUME, "data", "tower"))  # places of files may change
    load_learned(trained.model, folder)
    restore_optimizer(trained.model, trained.optimizer, load_tensors(folder / OPTIMIZER))
    put_back_scaler(trained.scaler, state)
    return Position(**{key: state[key] for key in vars(Position())})


def load_learned(model: Adapted, folder: Path) -> None:
    """The adapter's or the tower's weights and the head's out of a checkpoint. Raises ConfigError."""
    if isinstance(model.tower, peft.PeftModel):
        load_adapter_weights(model.tower, load_tensors(folder / ADAPTER), folder / ADAPTER)
    elif not model.frozen:
        load_strictly(model.tower, load_tensors(folder / TOWER), folder / TOWER)
    load_strictly(model.head, load_tensors(folder / HEAD), folder / HEAD)
