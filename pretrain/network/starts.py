"""What a new run starts with, where it does not start from nothing: a backbone, and from a run its heads and state too.

A run is spelled as a tower is: RUN or RUN@student, RUN@teacher. Both networks of the new run start from the one named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import AutoImageProcessor

from dino_tower.checkpoint import load_tensors, read_json
from dino_tower.errors import ConfigError
from dino_tower.finding import find
from dino_tower.loading import PROCESSOR_FILES
from dino_tower.pretrain.settings import Config
from dino_tower.pretrain.stages import run_of

if TYPE_CHECKING:
    from dino_tower.pretrain.objectives.objective import Objective
    from dino_tower.pretrain.state import Trained

HEADS = "heads.safetensors"


def weights_of(start: str) -> str:
    """The transformers directory or Hub id behind a start. Raises ConfigError for a run without a checkpoint."""
    return find(start) if run_of(start) is not None else start


def heads_of(start: str) -> Path | None:
    """The file with the heads that belong to a start's backbone: a run has one, and what `--format heads` exported."""
    folder = Path(weights_of(start))
    file = (folder.parent if run_of(start) is not None else folder) / HEADS
    return file if file.is_file() else None


def read_heads(start: str) -> tuple[dict[str, Tensor], str]:
    """All that stands beside a start's backbone, by name, and which network is meant: student or teacher.

    Empty where there is nothing. Raises ConfigError for a damaged file.
    """
    file = heads_of(start)
    return load_tensors(file) if file is not None else {}, "teacher" if start.endswith("@teacher") else "student"


def pixels_of(start: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and standard deviation of RGB in [0, 1] that a start knows pixels by; None where it does not say."""
    place = weights_of(start)
    if Path(place).is_dir() and not any((Path(place) / name).is_file() for name in PROCESSOR_FILES):
        return None
    try:
        processor: Any = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    return (mean, std) if mean and std else None


def take_over(trained: Trained, config: Config) -> str:
    """Load what the start has beside its backbone into both networks and the terms' state.

    Returns what was taken, for a person: "" where there is no start. A part that the start has not stays new. Raises
    ConfigError for a part of another shape.
    """
    if config.init_from is None:
        return ""
    said, file = f" with the weights of {config.init_from}", heads_of(config.init_from)
    if file is None or not config.init_heads:
        return f"{said}; heads are new"
    found, who = read_heads(config.init_from)
    for name in _of_other_teachers(trained.objective, file):
        found = {k: v for k, v in found.items() if name not in k.split(".")[:2]}
    taken = []
    for network in (trained.student, trained.teacher):
        for name, part in network.parts().items():
            for owner in (who, "student"):  # a part that no teacher has is the student's
                if _take(part, found, owner if name == "head" else f"{owner}.{name}", file):
                    taken.append(name)
                    break
    states = {k: v for k, v in trained.objective.states().items() if not getattr(v, "of_one_run", False)}
    taken += [name for name, module in states.items() if _take(module, found, name, file)]
    new = sorted({*trained.student.parts(), *(k for k, v in states.items() if v.state_dict())} - {*taken})
    said += f", its {', '.join(dict.fromkeys(taken))}" if taken else ""
    return said + (f"; new: {', '.join(new)}" if new else "")


def _of_other_teachers(objective: Objective, file: Path) -> list[str]:
    """The parts and states that speak of the frozen networks of a term, where the start had others or does not say."""
    state = file.with_name("state.json")
    before = read_json(state).get("teachers", {}) if state.is_file() else {}
    other = [term for term, digests in objective.teachers.items() if before.get(term) != digests]
    return [name for term in other for name in (term, *dict(objective.terms[term].named_children()))]


def _take(module: nn.Module, found: dict[str, Tensor], prefix: str, file: Path) -> bool:
    """Load a module's tensors, if there are any of it."""
    wanted = module.state_dict()
    own = {name: found[f"{prefix}.{name}"] for name in wanted if f"{prefix}.{name}" in found}
    for name, tensor in wanted.items() if own else ():
        if name not in own or own[name].shape != tensor.shape:
            theirs = tuple(own[name].shape) if name in own else "nothing"
            raise ConfigError(
                f"{file}: {prefix}.{name} has {theirs} and the new run {tuple(tensor.shape)}: give the head the sizes "
                "that it had, or start with new ones, --init-heads false"
            )
    module.load_state_dict(own, strict=bool(own))
    return bool(own)
