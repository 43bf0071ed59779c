"""Linear probe: many linear heads, trained side by side on frozen features, one of them chosen on a slice of train.

Legend: B images, N rows, D features, C classes, L learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.logistic import Linear
from dino_tower.eval.splits import held_out

# DINOv2 `run_eval_linear`: for a batch of 256, scaled with the batch.
LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


class Standard(NamedTuple):
    """Mean and deviation of the training features [D]."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features with mean 0 and deviation 1 on the training set."""
        return (features.float() - self.mean) / self.deviation


class Probe(NamedTuple):
    """The chosen head: logits = classifier(standard(features[name]))."""

    name: str
    learning_rate: float
    classifier: Linear
    standard: Standard
    validation: dict[tuple[str, float], float]  # accuracy on the slice for every (name, learning rate)


def linear_input(patches: Sequence[Tensor], cls: Sequence[Tensor], blocks: int = 4, mean_patch: bool = False) -> Tensor:
    """What a head sees (DINOv2 `create_linear_input`): CLS of the last `blocks` blocks, one after the other [B, D].

    patches: [B, P, D] and cls: [B, D] of each block, the last one last. mean_patch adds the last block's mean patch.
    DINO: S = 4 blocks, B = 1 block with the mean patch.
    """
    if not 1 <= blocks <= len(cls):
        raise ConfigError(f"linear input: {blocks} blocks of {len(cls)}")
    parts = list(cls)[-blocks:]
    return torch.cat([*parts, patches[-1].mean(1)] if mean_patch else parts, dim=-1)


def standardise(features: Tensor) -> Standard:
    """Of rows [N, D]. A feature that never changes is only centred. Width and scale differ by tower: without this a
    learning rate that suits one tower starves another."""
    deviation, mean = torch.std_mean(features.float(), dim=0, correction=0)
    return Standard(mean, torch.where(deviation > 1e-6 * (mean.abs() + 1e-12), deviation, torch.ones_like(deviation)))


def train_heads(
    features: Tensor,
    labels: Tensor,
    classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 10,
    batch: int = 256,
    optimiser: str = "sgd",
    weight_decay: float = 0.0,
    seed: int = 0,
) -> list[Linear]:
    """One head a learning rate, all trained on the same batches: features [N, D], labels [N] -> L classifiers.

    SGD has momentum 0.9; the rate is lr * batch / 256 and falls to 0 along a cosine. Weights start at N(0, 0.01).
    Raises ConfigError for an optimiser that is neither "sgd" nor "adamw".
    """
    if optimiser not in ("sgd", "adamw"):
        raise unknown("optimiser", optimiser, ("sgd", "adamw"))
    rng = torch.Generator().manual_seed(seed)
    batch = min(batch, len(features))
    first = torch.randn(classes, features.shape[1], generator=rng).to(features.device) * 0.01
    weights = [first.clone().requires_grad_() for _ in learning_rates]
    biases = [first.new_zeros(classes).requires_grad_() for _ in learning_rates]
    groups = [{"params": [w, b], "lr": lr * batch / 256}
              for w, b, lr in zip(weights, biases, learning_rates, strict=True)]  # fmt: skip
    stepper: torch.optim.Optimizer
    if optimiser == "sgd":
        stepper = torch.optim.SGD(groups, momentum=0.9, weight_decay=weight_decay)
    else:
        stepper = torch.optim.AdamW(groups, weight_decay=weight_decay)
    steps = epochs * (len(features) // batch)
    cosine = torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(features), generator=rng)[: len(features) // batch * batch]
            for rows in order.reshape(-1, batch).to(features.device):
                logits = F.linear(features[rows].float(), torch.cat(weights), torch.cat(biases))
                per_head = logits.unflatten(1, (len(weights), classes)).flatten(0, 1)
                loss = F.cross_entropy(per_head, labels[rows].repeat_interleave(len(weights)))
                stepper.zero_grad()
                (loss * len(weights)).backward()  # the mean over heads, undone: each head has its own loss
                stepper.step()
                cosine.step()
    return [Linear(w.detach(), b.detach()) for w, b in zip(weights, biases, strict=True)]


def linear_probe(
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 10,
    batch: int = 256,
    optimiser: str = "sgd",
    share: float = 0.1,
    seed: int = 0,
) -> Probe:
    """Train a head for every input ("4 blocks", "1 block + mean patch") and learning rate, choose one, refit on all.

    inputs: {name: training features [N, D]}; labels [N]. The choice is made on `share` of train, never on the split
    that is reported: the published scripts take the best of 52 heads on the test set. On a small slice many heads are
    equally often right; the least cross-entropy decides among them (the first would be the one that learned least).
    """
    if not inputs:
        raise ConfigError("linear probe: no inputs")
    fit, validation = held_out(labels, share, seed)
    tried: dict[tuple[str, float], float] = {}
    losses: dict[tuple[str, float], float] = {}
    for name, features in inputs.items():
        standard = standardise(features[fit])
        heads = train_heads(
            standard(features[fit]), labels[fit], classes, learning_rates, epochs, batch, optimiser, seed=seed
        )
        seen = standard(features[validation])
        for rate, head in zip(learning_rates, heads, strict=True):
            logits = head(seen)
            tried[name, rate] = float((logits.argmax(1) == labels[validation]).float().mean())
            losses[name, rate] = float(F.cross_entropy(logits, labels[validation]).nan_to_num(torch.inf))
    name, rate = max(tried, key=lambda one: (tried[one], -losses[one]))
    standard = standardise(inputs[name])
    head = train_heads(standard(inputs[name]), labels, classes, [rate], epochs, batch, optimiser, seed=seed)[0]
    return Probe(name, rate, head, standard, tried)
