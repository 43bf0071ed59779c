"""What a run needs to go on as if it had never stopped: two networks, the centre, the optimiser, the place in the data.

A checkpoint folder holds `student/` and `teacher/` as transformers directories, `heads.safetensors` (both heads and
the centre), `optimizer.safetensors` and `state.json`. Any number of processes can resume it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower import __version__
from dino_tower.checkpoint import load_tensors, read_json, save_tensors
from dino_tower.errors import ConfigError
from dino_tower.pretrain.centre import Centre
from dino_tower.pretrain.student_teacher import Network


@dataclass
class Position:
    """Where a run stands. Step s takes the data of step s + data_offset, which moves on when a run goes back."""

    step: int = 0
    data_offset: int = 0
    rollbacks: int = 0


@dataclass(frozen=True)
class Trained:
    """Everything that a step changes."""

    student: Network
    teacher: Network
    centre: Centre
    optimizer: torch.optim.Optimizer


def snapshot(trained: Trained, position: Position, processor: Any, facts: dict[str, Any]) -> Callable[[Path], None]:
    """Copy the state now; the returned function writes the copy into a folder, whenever it is called."""
    backbones = {who: net.backbone for who, net in (("student", trained.student), ("teacher", trained.teacher))}
    weights = {who: _copy(model.state_dict()) for who, model in backbones.items()}
    heads = {f"{who}.{k}": v for who, net in (("student", trained.student), ("teacher", trained.teacher))
             for k, v in net.head.state_dict().items()}  # fmt: skip
    heads = _copy({**heads, **{f"centre.{k}": v for k, v in trained.centre.state_dict().items()}})
    optimizer = _copy(_optimizer_tensors(trained))
    state = {"version": __version__, **facts, **asdict(position)}

    def write(folder: Path) -> None:
        for who, model in backbones.items():
            model.save_pretrained(folder / who, state_dict=weights[who])
            processor.save_pretrained(folder / who)
        save_tensors(folder / "heads.safetensors", heads)
        save_tensors(folder / "optimizer.safetensors", optimizer)
        (folder / "state.json").write_text(json.dumps(state, indent=1))

    return write


def restore(trained: Trained, folder: Path, global_batch: int) -> Position:
    """Load a checkpoint into the networks, the centre and the optimiser.

    Raises ConfigError naming the damaged part, and for another global batch: its steps would be other steps.
    """
    state = read_json(folder / "state.json")
    if state.get("global_batch") != global_batch:
        raise ConfigError(
            f"{folder}: written with a global batch of {state.get('global_batch')}, not {global_batch}; choose "
            "--batch-size and --compute.accumulate so that their product with the number of processes is the same"
        )
    load_backbone(trained.student.backbone, folder / "student")
    load_backbone(trained.teacher.backbone, folder / "teacher")
    heads = load_tensors(folder / "heads.safetensors")
    modules: dict[str, nn.Module] = {
        "student": trained.student.head,
        "teacher": trained.teacher.head,
        "centre": trained.centre,
    }
    for who, module in modules.items():
        part = {k.removeprefix(f"{who}."): v for k, v in heads.items() if k.startswith(f"{who}.")}
        _load_strictly(module, part, folder / "heads.safetensors")
    _restore_optimizer(trained, load_tensors(folder / "optimizer.safetensors"))
    return Position(state["step"], state["data_offset"], state["rollbacks"])


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
    _load_strictly(backbone, loaded.state_dict(), Path(str(source)))


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
