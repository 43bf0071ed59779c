"""What a run needs to go on as if it had never stopped: two networks, the terms' state, the optimiser, the place in
the data.

A checkpoint folder holds `student/` and `teacher/` as transformers directories (an adapter that is trained: as adapters
that name their base), `heads.safetensors` (what both networks have beside their backbone, and the terms' state: DINO's
centre and others), `optimizer.safetensors`, `state.json` and `digests.json` (SHA-256 of all of them). Any number of
processes can resume it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino_tower import __version__
from dino_tower.checkpoint import check_digests, checkpoints, load_tensors, save_tensors, write_digests
from dino_tower.errors import ConfigError
from dino_tower.pretrain.config import FREE_ON_RESUME
from dino_tower.pretrain.network.student_teacher import Network
from dino_tower.pretrain.network.weights import load_backbone
from dino_tower.pretrain.objectives.objective import Objective
from dino_tower.pretrain.settings import Config
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
PLACES = ("data", "init_from")  # of files: they may move, with config.yaml


@dataclass
class Position:
    """Where a run stands. Step s takes the data of step s + data_offset, which moves on when a run goes back."""

    step: int = 0
    data_offset: int = 0
    rollbacks: int = 0
    bad_in_a_row: int = 0
    """Steps up to here that changed nothing because something was not finite."""


@dataclass(frozen=True)
class Trained:
    """Everything that a step changes."""

    student: Network
    teacher: Network
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    """Of fp16."""


def snapshot(trained: Trained, position: Position, processor: Any, facts: dict[str, Any]) -> Callable[[Path], None]:
    """Copy the state now; the returned function writes the copy into a folder, whenever it is called."""
    backbones = {who: _backbone_writer(network, processor) for who, network in _networks(trained).items()}
    heads = copied({f"{name}.{k}": v for name, part in _beside(trained).items() for k, v in part.state_dict().items()})
    optimizer = copied(optimizer_tensors(trained.student, trained.optimizer))
    scaler = trained.scaler.state_dict() if trained.scaler is not None else None
    state = {"format": FORMAT, "version": __version__, **facts, **asdict(position), "scaler": scaler}

    def write(folder: Path) -> None:
        for who, write_backbone in backbones.items():
            write_backbone(folder / who)
        save_tensors(folder / "heads.safetensors", heads)
        save_tensors(folder / "optimizer.safetensors", optimizer)
        (folder / "state.json").write_text(json.dumps(state, indent=1))
        write_digests(folder)

    return write


def restore(trained: Trained, folder: Path, config: Config, global_batch: int) -> Position:
    """Load a checkpoint into the networks, the terms' state and the optimiser.

    Raises ConfigError naming the damaged part, for the checkpoint of a run with other settings, and for another global
    batch: its steps would be other steps.
    """
    with _saying_what_is_left(folder):
        check_digests(folder)
    state = read_state(folder, FORMAT, global_batch)
    check_settings(folder, state, Config(), config, (*FREE_ON_RESUME, *PLACES))
    _check_teachers(folder, state.get("teachers"), trained.objective, config)
    for who, network in _networks(trained).items():
        if network.adapter is not None:
            network.adapter.check_base(folder / who)
    with _saying_what_is_left(folder):
        _load(trained, folder)
    put_back_scaler(trained.scaler, state)
    return Position(**{key: state[key] for key in vars(Position())})


def _check_teachers(folder: Path, before: dict[str, list[str]] | None, objective: Objective, config: Config) -> None:
    """Raise ConfigError where a frozen network is another one than when the checkpoint was written, by its weights."""
    names = {"gram": (config.gram.tower,)}
    if before is None:  # of a release that noted none
        return
    for term, digests in objective.teachers.items():
        for name, now, then in zip(names.get(term, config.distil.teachers), digests, before[term], strict=True):
            if now != then:
                raise ConfigError(
                    f"{folder}: terms.{term}: the weights of {name} are not those that the run has learned from: put "
                    "them back there, or start a new run from this one (--init-from)"
                )


@contextmanager
def _saying_what_is_left(folder: Path) -> Iterator[None]:
    """What is wrong with a checkpoint, and the one before it that a run could go on from."""
    try:
        yield
    except ConfigError as error:
        older = [path for path in checkpoints(folder.parent) if path != folder]
        way = f"delete {folder} to go on from {older[-1].name}" if older else "no other checkpoint is left: start anew"
        raise ConfigError(f"{error}; {way}") from None


def _load(trained: Trained, folder: Path) -> None:
    for who, network in _networks(trained).items():
        if network.adapter is not None:
            network.adapter.load(folder / who)
        else:
            load_backbone(network.backbone, folder / who, own=True)
    heads = load_tensors(folder / "heads.safetensors")
    modules = _beside(trained)
    owners = {k: max((name for name in modules if k.startswith(f"{name}.")), key=len, default="") for k in heads}
    for name, module in modules.items():
        part = {k.removeprefix(f"{name}."): v for k, v in heads.items() if owners[k] == name}
        load_strictly(module, part, folder / "heads.safetensors")
    restore_optimizer(trained.student, trained.optimizer, load_tensors(folder / "optimizer.safetensors"))


def _networks(trained: Trained) -> dict[str, Network]:
    return {"student": trained.student, "teacher": trained.teacher}


def _backbone_writer(network: Network, processor: Any) -> Callable[[Path], None]:
    """Copies the backbone, or what is trained inside it, now; the returned function writes it into a new folder."""
    if network.adapter is not None:
        return network.adapter.writer()
    model, weights = network.backbone, copied(network.backbone.state_dict())

    def write(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=weights)
        processor.save_pretrained(folder)

    return write


def _beside(trained: Trained) -> dict[str, nn.Module]:
    """What heads.safetensors holds, by the start of its names; DINO's head has its owner's name alone."""
    parts = {
        who if name == "head" else f"{who}.{name}": part
        for who, net in _networks(trained).items()
        for name, part in net.parts().items()
    }
    return {**parts, **trained.objective.states()}
