"""What a run needs to go on as if it had never stopped: two networks, the terms' state, the optimiser, the place in
the data.

A checkpoint folder holds `student/` and `teacher/` as transformers directories, `heads.safetensors` (what both networks
have beside their backbone, and the terms' state: DINO's centre and others), `optimizer.safetensors`, `state.json` and
`digests.json` (SHA-256 of all of them). Any number of processes can resume it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower import __version__
from dino_tower.checkpoint import check_digests, checkpoints, load_tensors, read_json, save_tensors, write_digests
from dino_tower.config import differences, from_tree
from dino_tower.errors import ConfigError
from dino_tower.pretrain.config import must_stay
from dino_tower.pretrain.objectives.objective import Objective
from dino_tower.pretrain.settings import Config
from dino_tower.pretrain.student_teacher import Network

FORMAT = 1  # of a checkpoint folder; another number is refused


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
    backbones = {who: net.backbone for who, net in (("student", trained.student), ("teacher", trained.teacher))}
    weights = {who: _copy(model.state_dict()) for who, model in backbones.items()}
    heads = _copy({f"{name}.{k}": v for name, part in _beside(trained).items() for k, v in part.state_dict().items()})
    optimizer = _copy(_optimizer_tensors(trained))
    scaler = trained.scaler.state_dict() if trained.scaler is not None else None
    state = {"format": FORMAT, "version": __version__, **facts, **asdict(position), "scaler": scaler}

    def write(folder: Path) -> None:
        for who, model in backbones.items():
            model.save_pretrained(folder / who, state_dict=weights[who])
            processor.save_pretrained(folder / who)
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
    state = read_json(folder / "state.json")
    if state.get("format") != FORMAT:
        raise ConfigError(
            f"{folder}: written by dino-tower {state.get('version')} in format {state.get('format')}; this is "
            f"{__version__}, which reads format {FORMAT}: continue with the version that wrote it"
        )
    if state["global_batch"] != global_batch:
        raise ConfigError(
            f"{folder}: written with a global batch of {state['global_batch']}, not {global_batch}; choose "
            "--batch-size and --compute.accumulate so that their product with the number of processes is the same"
        )
    for key, theirs, ours in differences(from_tree(Config(), state["resolved"], str(folder / "state.json")), config):
        if must_stay(key) and key not in ("data", "init_from"):  # places of files may change, with config.yaml
            raise ConfigError(
                f"{folder}: written by a run with {key} {theirs!r}, not {ours!r}: config.yaml was changed, or the "
                "checkpoint is of another run; put back what belongs here"
            )
    with _saying_what_is_left(folder):
        _load(trained, folder)
    if trained.scaler is not None and state["scaler"]:
        trained.scaler.load_state_dict(state["scaler"])
    return Position(**{key: state[key] for key in vars(Position())})


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
    load_backbone(trained.student.backbone, folder / "student")
    load_backbone(trained.teacher.backbone, folder / "teacher")
    heads = load_tensors(folder / "heads.safetensors")
    modules = _beside(trained)
    owners = {k: max((name for name in modules if k.startswith(f"{name}.")), key=len, default="") for k in heads}
    for name, module in modules.items():
        part = {k.removeprefix(f"{name}."): v for k, v in heads.items() if owners[k] == name}
        _load_strictly(module, part, folder / "heads.safetensors")
    _restore_optimizer(trained, load_tensors(folder / "optimizer.safetensors"))


def _beside(trained: Trained) -> dict[str, nn.Module]:
    """What heads.safetensors holds, by the start of its names; DINO's head has its owner's name alone."""
    parts = {
        who if name == "head" else f"{who}.{name}": part
        for who, net in (("student", trained.student), ("teacher", trained.teacher))
        for name, part in net.parts().items()
    }
    return {**parts, **trained.objective.states()}


def changed_data(folder: Path, images: int) -> str | None:
    """A note for a run whose data has lost or gained images since a checkpoint was written."""
    before = read_json(folder / "state.json").get("images")
    if before == images:
        return None
    return f"note         the data has {images} images and had {before}: from here on their order is another one"


def load_backbone(backbone: PreTrainedModel, source: str | Path) -> None:
    """Weights of a transformers directory or Hub id into `backbone`: same class and shapes, nothing missing.

    A position table of another size is resized to this backbone's grid, bicubically as its class does when serving.
    Raises ConfigError otherwise.
    """
    kind: Any = type(backbone)
    try:
        loaded, info = kind.from_pretrained(source, output_loading_info=True)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{source}: cannot be loaded as {kind.__name__}: {' '.join(str(error).split())[:300]}"
        ) from None
    if info["missing_keys"] or info["unexpected_keys"]:
        odd = sorted(info["missing_keys"] or info["unexpected_keys"])[:3]
        word = "lacks" if info["missing_keys"] else "has unknown"
        raise ConfigError(f"{source}: not a {kind.__name__} of this shape: {word} {', '.join(odd)}")
    _load_strictly(backbone, _on_the_grid_of(backbone, loaded), Path(str(source)))


@torch.no_grad()
def _on_the_grid_of(backbone: PreTrainedModel, loaded: Any) -> dict[str, Tensor]:
    """The loaded weights, the position table resized where the backbone has another grid."""
    weights, name = loaded.state_dict(), "embeddings.position_embeddings"
    table = backbone.state_dict().get(name)
    if table is None or table.shape == weights[name].shape or table.shape[-1] != weights[name].shape[-1]:
        return weights
    size = backbone.config.image_size
    return {**weights, name: loaded.embeddings.interpolate_pos_encoding(torch.empty(table.shape), size, size)}


def _load_strictly(module: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = str(error).split("\n\t")[1] if "\n\t" in str(error) else str(error)
        raise ConfigError(f"{where}: does not fit this run's network: {' '.join(reason.split())[:200]}") from None


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def _trainable(trained: Trained) -> dict[str, nn.Parameter]:
    return {name: p for name, p in trained.student.named_parameters() if p.requires_grad}


def _optimizer_tensors(trained: Trained) -> dict[str, Tensor]:
    """Optimiser state by parameter name: `NAME/exp_avg` and so on. Parameters not yet stepped have none."""
    state = trained.optimizer.state
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, p in _trainable(trained).items()
        for key, value in state.get(p, {}).items()
    }


def _restore_optimizer(trained: Trained, tensors: dict[str, Tensor]) -> None:
    parameters = _trainable(trained)
    trained.optimizer.state.clear()
    for name, value in tensors.items():
        name, _, key = name.rpartition("/")
        if name not in parameters:
            raise ConfigError(f"optimizer.safetensors: no parameter {name!r} in this run's network")
        p = parameters[name]
        device = "cpu" if key == "step" and not _fused_on_device(trained.optimizer) else p.device
        trained.optimizer.state[p][key] = value.to(device)


def _fused_on_device(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))
