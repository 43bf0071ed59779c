"""Whether embeddings still tell pictures apart."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_tower.alarms import Rule

LEAST = 0.01


@torch.no_grad()
def spread(vectors: Tensor) -> Tensor:
    """1 less the squared length of the mean of unit vectors [..., d]: 0 where all are the same, 1 all around."""
    return 1 - vectors.flatten(0, -2).float().mean(0).square().sum()


def alike_rule(name: str, what: str, remedy: str) -> dict[str, Rule]:
    """The alarm over `NAME_spread`: what is compared became one point."""
    key = f"{name}_spread"
    meaning = f"{what} has the same embedding (spread below {LEAST})"
    return {f"{name}-collapse": Rule(lambda row: row[key] < LEAST, meaning, remedy)}
