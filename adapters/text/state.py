"""What a text alignment needs to go on as if it had never stopped, and the tower that it ends as.

A checkpoint folder holds `trained.safetensors`, `optimizer.safetensors`, `state.json` and `digests.json`. The frozen
tower is not in it, nor the words of the tokenizer: they are read again, and have to be the same. A finished run has the
model beside its settings and its log: DIR is then a tower.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import VisionTextDualEncoderProcessor

from dino_tower import __version__
from dino_tower.adapters.text.encoders import TextEncoder
from dino_tower.checkpoint import (
    check_digests,
    load_tensors,
    read_json,
    save_tensors,
    step_of,
    write_atomically,
    write_digests,
)
from dino_tower.errors import ConfigError
from dino_tower.run.directory import cannot_write
from dino_tower.run.state import copied, optimizer_tensors, restore_optimizer, trainable
from dino_tower.text_tower import TextTower

MODEL = "config.json"  # the file that makes a directory a tower


@dataclass(frozen=True)
class Trained:
    """Everything that a step changes: the parameters that ask for gradients, and what the optimiser keeps of them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


def snapshot(trained: Trained, facts: dict[str, Any]) -> Callable[[Path], None]:
    """Copy the state now; the returned function writes the copy into a folder, whenever it is called."""
    weights = copied(trainable(trained.model))
    optimizer = copied(optimizer_tensors(trained.model, trained.optimizer))

    def write(folder: Path) -> None:
        save_tensors(folder / "trained.safetensors", weights)
        save_tensors(folder / "optimizer.safetensors", optimizer)
        (folder / "state.json").write_text(json.dumps({"version": __version__, **facts}, indent=1))
        write_digests(folder)

    return write


def restore(trained: Trained, folder: Path, facts: dict[str, Any]) -> int:
    """Load a checkpoint; returns its step. Raises ConfigError for a damaged one, and for one of another run.

    facts: what has to be the same as when it was written.
    """
    check_digests(folder)
    state = read_json(folder / "state.json")
    for key, now in facts.items():
        if state.get(key) != now:
            raise ConfigError(f"{folder}: written with {key} {state.get(key)!r}, not {now!r}; start a new run")
    weights, parameters = load_tensors(folder / "trained.safetensors"), trainable(trained.model)
    if weights.keys() != parameters.keys() or any(weights[name].shape != p.shape for name, p in parameters.items()):
        raise ConfigError(f"{folder}: does not fit this run's model, whose texts or encoder have changed")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(weights[name])
    restore_optimizer(trained.model, trained.optimizer, load_tensors(folder / "optimizer.safetensors"))
    return step_of(folder)


def write_tower(root: Path, model: TextTower, processor: Any, text: TextEncoder) -> None:
    """What `load_tower`, AutoModel and AutoProcessor read, written into `root` beside the run's files.

    config.json comes last: until then the directory is none. Raises ConfigError where it cannot be written.
    """
    aside = root / ".model"

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        VisionTextDualEncoderProcessor(processor, text.tokenizer).save_pretrained(folder)

    try:
        shutil.rmtree(aside, ignore_errors=True)
        write_atomically(aside, write)
        for path in sorted(aside.iterdir(), key=lambda path: path.name == MODEL):
            path.replace(root / path.name)
        aside.rmdir()
    except (OSError, SafetensorError) as error:
        raise cannot_write(root, error) from None
