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
from torch import Tensor, nn

from dino_tower import __version__
from dino_tower.adapters.adapted import Adapted
from dino_tower.adapters.config import must_stay
from dino_tower.adapters.settings import Config
from dino_tower.checkpoint import check_digests, load_tensors, read_json, save_tensors, write_digests
from dino_tower.config import differences, from_tree
from dino_tower.errors import ConfigError
from dino_tower.peft_adapter import Base, adapter_weights, load_adapter_weights

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
    optimizer = copied(_optimizer_tensors(trained))
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
    state = read_json(folder / "state.json")
    if state.get("format") != FORMAT:
        raise ConfigError(
            f"{folder}: written by dino-tower {state.get('version')} in format {state.get('format')}; this is "
            f"{__version__}, which reads format {FORMAT}: continue with the version that wrote it"
        )
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
    if state["global_batch"] != global_batch:
        raise ConfigError(
            f"{folder}: written with a global batch of {state['global_batch']}, not {global_batch}; choose "
            "--batch-size and --compute.accumulate so that their product with the number of processes is the same"
        )
    for key, theirs, ours in differences(from_tree(Config(), state["resolved"], str(folder / "state.json")), config):
        if must_stay(key) and key not in ("data", "tower"):  # places of files may change, with config.yaml
            raise ConfigError(
                f"{folder}: written by a run with {key} {theirs!r}, not {ours!r}; config.yaml was changed"
            )
    load_learned(trained.model, folder)
    _restore_optimizer(trained, load_tensors(folder / OPTIMIZER))
    if trained.scaler is not None and state["scaler"]:
        trained.scaler.load_state_dict(state["scaler"])
    return Position(**{key: state[key] for key in vars(Position())})


def changed_data(folder: Path, images: int) -> str:
    """A note for a run whose data has lost or gained pictures since a checkpoint was written; empty otherwise."""
    before = read_json(folder / "state.json").get("images")
    if before == images:
        return ""
    return f"note         the data has {images} pictures and had {before}: from here on their order is another one"


def load_learned(model: Adapted, folder: Path) -> None:
    """The adapter's or the tower's weights and the head's out of a checkpoint. Raises ConfigError."""
    if isinstance(model.tower, peft.PeftModel):
        load_adapter_weights(model.tower, load_tensors(folder / ADAPTER), folder / ADAPTER)
    elif not model.frozen:
        load_strictly(model.tower, load_tensors(folder / TOWER), folder / TOWER)
    load_strictly(model.head, load_tensors(folder / HEAD), folder / HEAD)


def load_strictly(module: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Raises ConfigError for names or shapes that are not the module's own."""
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = str(error).split("\n\t")[1] if "\n\t" in str(error) else str(error)
        raise ConfigError(f"{where}: does not fit this network: {' '.join(reason.split())[:200]}") from None


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, apart from what goes on changing."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _optimizer_tensors(trained: Trained) -> dict[str, Tensor]:
    """Optimiser state by parameter name: `NAME/exp_avg` and so on. Parameters not yet stepped have none."""
    state = trained.optimizer.state
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, p in trainable(trained.model).items()
        for key, value in state.get(p, {}).items()
    }


def _restore_optimizer(trained: Trained, tensors: dict[str, Tensor]) -> None:
    parameters = trainable(trained.model)
    trained.optimizer.state.clear()
    for name, value in tensors.items():
        name, _, key = name.rpartition("/")
        if name not in parameters:
            raise ConfigError(f"{OPTIMIZER}: no parameter {name!r} in this run's network")
        p = parameters[name]
        trained.optimizer.state[p][key] = value.to("cpu" if key == "step" else p.device)
