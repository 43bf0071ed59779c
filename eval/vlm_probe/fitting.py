"""Training and asking the small VLM on features that were read once: the loop from top to bottom.

N pictures, P of them in a step, h x w patches of D features, G image tokens of F = f f D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.linear_probe import Standard, standardise
from dino_tower.eval.vlm_probe.asking import Asked, Vocabulary, rows_of
from dino_tower.eval.vlm_probe.language_model import SmallVLM

SIDE = 4  # image tokens along a side at most: fewer are found sooner by a language model that starts from nothing
FITTED = 100_000  # patches that features are standardised by, at most
AT_A_TIME = 64  # pictures that are asked about together


@dataclass(frozen=True)
class Plan:
    """How the language model is trained. pictures, questions: of a step, and of each of its pictures at most.

    Small steps and many of them: it takes updates more than questions to learn to look. On the hard scenes a good tower
    is asked where things are with success from 3,000 steps on, which of two is to the left from 5,000 on.

    epochs: passes over the pictures at most, so that few of them take fewer steps.
    """

    steps: int = 8500
    epochs: int = 25
    pictures: int = 8
    questions: int = 8
    lr: float = 2e-3
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.05
    width: int = 96
    depth: int = 2
    heads: int = 3

    def length(self, pictures: int) -> int:
        """Steps with so many pictures."""
        return max(1, min(self.steps, self.epochs * pictures // self.pictures))


def image_tokens(patches: Tensor, side: int = SIDE) -> Tensor:
    """Neighbouring patches [N, h, w, D] side by side in one token (InternVL's pixel shuffle): [N, g, g', F].

    f is the smallest number of neighbours that leaves at most `side` tokens along each side; a grid that f does not
    divide is filled up with 0 below and on the right.
    """
    height, width = patches.shape[1:3]
    f = max(1, -(-max(height, width) // side))
    filled = F.pad(patches, (0, 0, 0, -width % f, 0, -height % f))
    return filled.unflatten(1, (-1, f)).unflatten(3, (-1, f)).transpose(2, 3).flatten(3)


def blind(patches: Tensor) -> Tensor:
    """Patches [N, h, w, 1] that tell nothing, in place of others: the control of what words alone can tell."""
    return torch.zeros(*patches.shape[:3], 1)


@dataclass(frozen=True)
class Fitted:
    """A trained model with what its features are standardised by."""

    model: SmallVLM
    standard: Standard


def fit(
    patches: Tensor,
    asked: Sequence[Asked],
    vocabulary: Vocabulary,
    plan: Plan = Plan(),  # frozen
    seed: int = 0,
    watch: Callable[[int, float], object] = lambda step, loss: None,
) -> Fitted:
    """Train projector and language model on [N, h, w, D] (float16 will do) and what is asked of each picture.

        loss = cross-entropy of the answer, mean over the questions of a step

    AdamW, linear warm-up, cosine to 0. The order of pictures and questions, and the language model as it is drawn,
    hang on the seed and the grid alone: the tower is the only difference. Raises ConfigError without questions.
    """
    places = np.array([i for i, one in enumerate(asked) if len(one)])
    if not len(places):
        raise ConfigError("VLM probe: no question about a training picture")
    rng = np.random.default_rng(seed)
    rows = patches.flatten(0, 2)
    standard = standardise(rows[:: max(1, len(rows) // FITTED)])
    grid = image_tokens(patches[:1]).shape
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = SmallVLM(
            grid[3], (grid[1], grid[2]), len(vocabulary), vocabulary.longest, plan.width, plan.depth, plan.heads
        ).train()  # fmt: skip
        matrices = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98), fused=True)
        order = np.empty(0, np.int64)
        steps = plan.length(len(places))
        for step in range(steps):
            while len(order) < plan.pictures:  # the rest of an epoch begins the next
                order = np.concatenate([order, rng.permutation(places)])
            chosen, order = order[: plan.pictures], order[plan.pictures :]
            batch = rows_of([asked[i].some(plan.questions, rng) for i in chosen])
            image = _seen(patches[torch.from_numpy(chosen)], standard)
            loss = F.cross_entropy(model(image, batch), batch.answers)
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * rate(step, steps, plan.warmup)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            watch(step, float(loss.detach()))
    return Fitted(model.eval(), standard)


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate: linear up, then a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@torch.no_grad()
def answers(fitted: Fitted, patches: Tensor, asked: Sequence[Asked]) -> list[np.ndarray]:
    """The likeliest answer to every question: of each picture its ids, int64 [Q]."""
    found: list[np.ndarray] = []
    for start in range(0, len(asked), AT_A_TIME):
        part = asked[start : start + AT_A_TIME]
        some = [i for i, one in enumerate(part) if len(one)]
        given = np.zeros(0, np.int64)
        if some:
            image = _seen(patches[start : start + AT_A_TIME][some], fitted.standard)
            given = fitted.model(image, rows_of([part[i] for i in some])).argmax(1).numpy()
        found += np.split(given, np.cumsum([len(one) for one in part])[:-1])
    return found


def _seen(patches: Tensor, standard: Standard) -> Tensor:
    """[P, G, F] as the projector reads them."""
    return image_tokens(standard(patches)).flatten(1, 2)
