"""Everything that training goes on from: the tower, its teacher, and the projection heads of both."""

from __future__ import annotations

from pathlib import Path

import torch

from dino_tower.checkpoint import load_tensors, save_tensors
from dino_tower.errors import ConfigError
from dino_tower.export.same_features import Forward, forward_of
from dino_tower.tower import Tower, load_tower

HEADS = "heads.safetensors"


def write_heads(tower: Tower, folder: Path, checkpoint: Path | None) -> list[str]:
    """The tower at the top, so that `--init-from OUT` takes it; student/, teacher/, and heads.safetensors beside it.

    heads.safetensors has `student.*`, `teacher.*` and `centre.*`, named as in DINO's published checkpoints.
    """
    if checkpoint is None:
        raise ConfigError("format heads is for a run: weights alone have no projection head")
    heads = load_tensors(checkpoint / HEADS)
    tower.model.save_pretrained(folder)
    tower.processor.save_pretrained(folder)
    for who in ("student", "teacher"):
        network = load_tower(str(checkpoint / who))
        network.model.save_pretrained(folder / who)
        network.processor.save_pretrained(folder / who)
    save_tensors(folder / HEADS, heads)
    written = load_tensors(folder / HEADS)
    if written.keys() != heads.keys() or not all(torch.equal(written[name], heads[name]) for name in heads):
        raise ConfigError(f"{HEADS} differs from the run's; not kept")
    return []


def open_heads(folder: Path, tower: Tower) -> Forward:
    return forward_of(load_tower(folder))
