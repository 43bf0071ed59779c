"""What a checkpoint keeps, for every kind of training: weights, the optimiser by parameter name, and whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dino_tower import __version__
from dino_tower.checkpoint import read_json
from dino_tower.config import differences, from_tree
from dino_tower.errors import ConfigError
from dino_tower.run.settings import must_stay

T = TypeVar("T")


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, apart from what goes on changing."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load_strictly(module: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Raises ConfigError for names or shapes that are not the module's own."""
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = str(error).split("\n\t")[1] if "\n\t" in str(error) else str(error)
        raise ConfigError(f"{where}: does not fit this run's network: {' '.join(reason.split())[:200]}") from None


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`NAME/exp_avg` and so on of the model's trainable parameters. Those not yet stepped have none."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, p in trainable(model).items()
        for key, value in optimizer.state.get(p, {}).items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. Raises ConfigError for a parameter that the model has not."""
    parameters, fused = trainable(model), bool(optimizer.defaults.get("fused"))
    optimizer.state.clear()
    for name, value in tensors.items():
        name, _, key = name.rpartition("/")
        if name not in parameters:
            raise ConfigError(f"optimizer.safetensors: no parameter {name!r} in this run's network")
        p = parameters[name]
        optimizer.state[p][key] = value.to("cpu" if key == "step" and not fused else p.device)


def read_state(folder: Path, format: int, global_batch: int) -> dict[str, Any]:
    """state.json of a checkpoint. Raises ConfigError for another format and another global batch: other steps."""
    state = read_json(folder / "state.json")
    if state.get("format") != format:
        raise ConfigError(
            f"{folder}: written by dino-tower {state.get('version')} in format {state.get('format')}; this is "
            f"{__version__}, which reads format {format}: continue with the version that wrote it"
        )
    if state["global_batch"] != global_batch:
        raise ConfigError(
            f"{folder}: written with a global batch of {state['global_batch']}, not {global_batch}; choose "
            "--batch-size and --compute.accumulate so that their product with the number of processes is the same"
        )
    return state


def check_settings(folder: Path, state: Mapping[str, Any], default: T, config: T, free: Iterable[str]) -> None:
    """Raise ConfigError for the checkpoint of a run with other settings than config.yaml's, `free` ones aside."""
    free = tuple(free)
    for key, theirs, ours in differences(from_tree(default, state["resolved"], str(folder / "state.json")), config):
        if must_stay(key, free):
            raise ConfigError(
                f"{folder}: written by a run with {key} {theirs!r}, not {ours!r}: config.yaml was changed, or the "
                "checkpoint is of another run; put back what belongs here"
            )


def images_at_start(folder: Path) -> int | None:
    """How many images the data had when the run of a checkpoint was planned; None where that cannot be read."""
    try:
        images = read_json(folder / "state.json").get("images")
    except ConfigError:
        return None  # damaged: who reads all of it says so, with what to do
    return images if isinstance(images, int) else None


def changed_data(folder: Path, images: int) -> str:
    """A note for a run whose data has lost or gained images since a checkpoint was written; empty otherwise."""
    before = read_json(folder / "state.json").get("images")
    if before == images:
        return ""
    return f"note         the data has {images} images and had {before}: from here on their order is another one"


def put_back_scaler(scaler: torch.amp.GradScaler | None, state: Mapping[str, Any]) -> None:
    """The loss scale of fp16, where there is one."""
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
