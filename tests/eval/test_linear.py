"""Linear probe and logistic regression: known optima, fair choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.linear_probe import linear_input, linear_probe, standardise, train_heads
from dino_tower.eval.linear_segmentation import fit_ridge
from dino_tower.eval.logistic import STRENGTHS, Linear, fit_logistic, logistic_regression
from dino_tower.knn import knn_accuracy

CLASSES = 5


def features(kind: str, images: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, 24] of a tower that sees the class, or of one that sees noise; scale and mean as wild as those of towers."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    rows = torch.randn(images, 24, generator=rng)
    if kind == "seeing":
        rows[torch.arange(images), labels] += 9
    return rows * torch.logspace(-3, 2, 24) + 3, labels


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_seeing_tower_is_perfect_and_a_blind_one_at_chance(optimiser: str) -> None:
    for kind, low, high in (("seeing", 1.0, 1.0), ("blind", 0.08, 0.32)):
        (train, labels), (test, truth) = features(kind), features(kind, 200, seed=1)
        probe = linear_probe({"cls": train}, labels, CLASSES, (0.01, 0.1), epochs=8, batch=64, optimiser=optimiser)
        found = probe.classifier(probe.standard(test)).argmax(1)
        assert low <= float((found == truth).double().mean()) <= high
        fitted = logistic_regression(standardise(train)(train), labels, CLASSES, (0.01, 1.0))
        found = fitted.classifier(standardise(train)(test)).argmax(1)
        assert low <= float((found == truth).double().mean()) <= high


def test_nearest_neighbours_of_a_seeing_and_a_blind_tower() -> None:
    rng = torch.Generator().manual_seed(0)
    labels, truth = torch.arange(400) % CLASSES, torch.arange(200) % CLASSES
    centres = 5 * torch.randn(CLASSES, 24, generator=rng)
    train, test = (centres[y] + torch.randn(len(y), 24, generator=rng) for y in (labels, truth))
    assert knn_accuracy(train, labels, test, truth) == {10: 1.0, 20: 1.0}
    blind = knn_accuracy(torch.randn(400, 24, generator=rng), labels, torch.randn(200, 24, generator=rng), truth)
    assert all(0.1 < accuracy < 0.3 for accuracy in blind.values())


def test_without_standardising_a_rate_suits_one_scale_only() -> None:
    train, labels = features("seeing")
    heads = {scale: train_heads(train * scale, labels, CLASSES, [0.1], 5, 64)[0] for scale in (1e-3, 1.0)}
    right = [float((head(train * scale).argmax(1) == labels).double().mean()) for scale, head in heads.items()]
    assert max(right) < 0.95
    standard = [standardise(train * scale) for scale in (1e-3, 1.0)]
    torch.testing.assert_close(standard[0](train * 1e-3), standard[1](train), atol=1e-3, rtol=1e-3)


def test_choosing_on_the_test_set_inflates() -> None:
    """On noise the best of 60 heads is above chance on the set it was chosen on, and at chance on fresh images."""
    gain = []
    for seed in range(6):
        rng = torch.Generator().manual_seed(seed)
        labels = torch.arange(60) % 2
        reported, fresh = (torch.randn(60, 20, generator=rng) for _ in range(2))
        heads = [Linear(torch.randn(2, 20, generator=rng), torch.zeros(2)) for _ in range(60)]
        right = np.array([[(h(x).argmax(1) == labels).double().mean() for h in heads] for x in (reported, fresh)])
        gain.append((right[0].max() - 0.5, right[1][right[0].argmax()] - 0.5))
    tuned, honest = np.mean(gain, axis=0)
    assert tuned > 0.1 > abs(honest)


def test_the_choice_sees_training_images_only() -> None:
    train, labels = features("seeing")
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    inputs = {"signal": train, "noise": features("blind")[0]}
    probe = linear_probe(inputs, labels, CLASSES, (0.001, 0.1), epochs=4, batch=64)
    assert probe.name == "signal"
    assert len(probe.validation) == 4
    assert probe.validation["signal", probe.learning_rate] == max(probe.validation.values())
    assert max(linear_probe(inputs, mixed, CLASSES, (0.1,), epochs=4, batch=64).validation.values()) < 0.5


def test_heads_side_by_side_are_heads_alone() -> None:
    train, labels = features("seeing", 200)
    rows = standardise(train)(train)
    for optimiser in ("sgd", "adamw"):
        together = train_heads(rows, labels, CLASSES, [0.01, 0.3], 3, 32, optimiser, weight_decay=0.01)
        for rate, head in zip([0.01, 0.3], together, strict=True):
            alone = train_heads(rows, labels, CLASSES, [rate], 3, 32, optimiser, weight_decay=0.01)[0]
            torch.testing.assert_close(head.weight, alone.weight, atol=1e-5, rtol=1e-4)


def test_logistic_regression_is_at_its_optimum() -> None:
    """The gradient of the convex objective vanishes, whatever the start."""
    train, labels = features("blind", 150)
    rows = standardise(train)(train)
    for strength in (0.01, 1.0):
        fitted = fit_logistic(rows, labels, CLASSES, strength)
        w, b = (part.double().requires_grad_() for part in fitted)
        loss = F.cross_entropy(F.linear(rows.double(), w, b), labels) + w.square().sum() / (2 * strength * len(rows))
        gradients = torch.autograd.grad(loss, (w, b))
        assert max(float(g.abs().max()) for g in gradients) < 1e-4
        start = Linear(torch.randn(CLASSES, 24, generator=torch.Generator().manual_seed(1)), torch.zeros(CLASSES))
        elsewhere = fit_logistic(rows, labels, CLASSES, strength, start)
        torch.testing.assert_close(fitted.weight, elsewhere.weight, atol=2e-3, rtol=0)


def test_strengths_are_those_of_dinov2() -> None:
    assert len(STRENGTHS) == 45
    assert STRENGTHS[0] == pytest.approx(1e-6)
    assert STRENGTHS[-1] == pytest.approx(1e5)


def test_ridge_is_least_squares_with_a_free_bias() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 4, generator=rng)
    targets = rows @ torch.randn(4, 3, generator=rng) + 7
    head = fit_ridge(rows, targets, 1e9)
    torch.testing.assert_close(head(rows), targets, atol=1e-4, rtol=1e-4)
    assert fit_ridge(rows, targets, 1e-9).weight.abs().max() < 1e-5
    torch.testing.assert_close(fit_ridge(rows, targets, 1e-9).bias, targets.mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_logistic(torch.ones(3, 2), torch.tensor([0, 1, 9]), 2, 1.0), "labels 0 to 9; need 0 to 1"),
        (lambda: fit_logistic(torch.ones(3, 2), torch.tensor([0, 1]), 2, 1.0), "3 rows, 2 labels"),
        (lambda: fit_logistic(torch.ones(2, 2), torch.tensor([0, 1]), 2, 0.0), "strength 0.0"),
        (lambda: train_heads(torch.ones(3, 2), torch.zeros(3).long(), 2, optimiser="adam"), "did you mean 'adamw'?"),
        (lambda: linear_probe({}, torch.zeros(3).long(), 2), "no inputs"),
        (lambda: linear_input([torch.ones(1, 4, 3)], [torch.ones(1, 3)], 4), "4 blocks of 1"),
    ],
)
def test_mistakes_are_named(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
