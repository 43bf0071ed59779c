"""Logistic regression on frozen features: L2, L-BFGS, its strength chosen on a slice of train.

Legend: N images, D features, C classes, S strengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.splits import held_out

STRENGTHS = tuple((10 ** torch.linspace(-6, 5, 45, dtype=torch.float64)).tolist())  # DINOv2 `C_POWER_RANGE`


class Linear(NamedTuple):
    """A linear classifier: weight [C, D], bias [C]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [..., C] of features [..., D]."""
        return features.to(self.weight) @ self.weight.T + self.bias


class Chosen(NamedTuple):
    """The classifier refitted on all of train, and what was tried on the slice: {strength: accuracy there}."""

    classifier: Linear
    strength: float
    validation: dict[float, float]


def fit_logistic(
    features: Tensor, targets: Tensor, classes: int, strength: float, start: Linear | None = None, steps: int = 200
) -> Linear:
    """Minimise the softmax cross-entropy with an L2 penalty on the weight (not the bias), by L-BFGS.

        mean over rows of CE(x W^T + b, y) + ||W||^2 / (2 strength N)

    features [N, D]; targets [N] integers or [N, C] shares. Large strength: little regularisation, as sklearn's `C`.
    start: a nearby solution to go on from. Convex: the start does not change where it ends.
    """
    count = len(features)
    if count == 0 or len(targets) != count or strength <= 0:
        raise ConfigError(f"logistic regression: {count} rows, {len(targets)} labels, strength {strength}; "
                          "need as many labels as rows, at least one, and a strength above 0")  # fmt: skip
    if targets.ndim == 1 and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ConfigError(f"logistic regression: labels {int(targets.min())} to {int(targets.max())}; "
                          f"need 0 to {classes - 1}")  # fmt: skip
    x = features.float()
    first = start or Linear(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes))
    weight, bias = (part.clone().requires_grad_() for part in first)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=1e-6, tolerance_change=1e-9,
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), targets) + weight.square().sum() / (2 * strength * count)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    return Linear(weight.detach(), bias.detach())


def logistic_regression(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
    share: float = 0.1,
    seed: int = 0,
) -> Chosen:
    """DINOv2's protocol: frozen CLS, not normalised; strength chosen on `share` of train, then refitted on all of it.

    features [N, D], labels [N]. Strengths are tried from strong regularisation to weak, each from the last solution.
    The test split is no argument: nothing can be chosen on it. Ties go to the stronger regularisation.
    """
    fit, validation = held_out(labels, share, seed)
    tried: dict[float, float] = {}
    best: Linear | None = None
    solution: Linear | None = None
    for strength in sorted(strengths):
        solution = fit_logistic(features[fit], labels[fit], classes, strength, solution)
        tried[strength] = float((solution(features[validation]).argmax(1) == labels[validation]).float().mean())
        if best is None or tried[strength] > max(list(tried.values())[:-1]):
            best, chosen = solution, strength
    if best is None:
        raise ConfigError("logistic regression: no strengths to try")
    return Chosen(fit_logistic(features, labels, classes, chosen, best), chosen, tried)
