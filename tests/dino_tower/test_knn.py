"""k-NN against the authors' numbers, and the paired bootstrap against what it should cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dino_tower.errors import ConfigError
from dino_tower.knn import knn_accuracy, knn_correct, knn_votes, paired_interval

PARITY = Path(__file__).parents[1] / "parity" / "eval" / "knn.npz"
KS = (1, 5, 10, 20, 100)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    with np.load(PARITY) as file:
        return {name: torch.from_numpy(np.atleast_1d(file[name])) for name in file.files}


def sets(published: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return published["train"], published["train_y"], published["test"], published["test_y"]


@pytest.mark.parametrize("top", [1, 5])
def test_accuracy_is_that_of_dino(published: dict[str, torch.Tensor], top: int) -> None:
    ours = knn_accuracy(*sets(published), k=KS, top=top)
    for k in KS:
        assert 100 * ours[k] == pytest.approx(float(published[f"top{top}_k{k}"]), abs=1e-9), k


@pytest.mark.parametrize("k", [10, 20, 100])
def test_votes_are_those_of_dinov2(published: dict[str, torch.Tensor], k: int) -> None:
    """The reference divides by the votes of the largest k; ours by those of k itself: compare the shares."""
    train, train_y, test, _ = sets(published)
    theirs = published[f"dinov2_probs_k{k}"]
    ours = knn_votes(train, train_y, test, k=KS)[k]
    torch.testing.assert_close(ours, theirs / theirs.sum(1, keepdim=True), rtol=0, atol=2e-6)


def test_order_of_classes_is_that_of_lightly(published: dict[str, torch.Tensor]) -> None:
    train, train_y, test, _ = sets(published)
    scores = knn_votes(train, train_y, test, k=20)[20]
    theirs = published["lightly_pred_k20"]
    assert torch.equal(scores.argmax(1), theirs[:, 0])
    along_theirs = scores.gather(1, theirs)  # ties (classes without a vote) may stand in any order
    assert bool((along_theirs[:, :-1] >= along_theirs[:, 1:] - 1e-7).all())


@pytest.mark.parametrize("chunk", [1, 7, 299, 300, 10_000])
def test_any_chunk_gives_the_same_votes(published: dict[str, torch.Tensor], chunk: int) -> None:
    train, train_y, test, _ = sets(published)
    whole = knn_votes(train, train_y, test, k=(5, 20))
    parts = knn_votes(train, train_y, test, k=(5, 20), chunk=chunk)
    for k in whole:
        torch.testing.assert_close(parts[k], whole[k], rtol=0, atol=1e-6)


def test_fewer_images_than_k_all_vote() -> None:
    train = torch.eye(3)
    scores = knn_votes(train, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.9, 0.0]]), k=(1, 20), classes=4)
    assert scores[1].tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert scores[20].shape == (1, 4)
    assert float(scores[20].sum()) == pytest.approx(1)
    assert scores[20][0, 1] > 0


def test_scale_of_features_and_small_temperature_do_not_matter() -> None:
    rng = torch.Generator().manual_seed(0)
    train, test = torch.randn(50, 8, generator=rng), torch.randn(9, 8, generator=rng)
    labels = torch.arange(50) % 5
    plain = knn_votes(train, labels, test, k=5)[5]
    torch.testing.assert_close(knn_votes(train * 1e4, labels, test * 1e-3, k=5)[5], plain)
    assert bool(torch.isfinite(knn_votes(train, labels, test, k=5, temperature=1e-4)[5]).all())


def test_a_test_label_without_training_images_is_wrong_not_an_error() -> None:
    correct = knn_correct(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 7]), k=1)
    assert correct[1].tolist() == [True, False]


@pytest.mark.parametrize("chunk", [2, 100])
def test_each_image_judged_by_the_others(chunk: int) -> None:
    rng = torch.Generator().manual_seed(4)
    features, labels = torch.randn(12, 6, generator=rng), torch.arange(12) % 3
    scores = knn_votes(features, labels, features, k=3, classes=3, chunk=chunk, leave_self_out=True)[3]
    for i in range(12):
        others = torch.arange(12) != i
        alone = knn_votes(features[others], labels[others], features[i : i + 1], k=3, classes=3)[3]
        torch.testing.assert_close(scores[i], alone[0])
    with pytest.raises(ConfigError, match="leave_self_out"):
        knn_accuracy(features, labels, features[:3], labels[:3], leave_self_out=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": torch.zeros(0, 4), "train_labels": torch.zeros(0)}, "no training features"),
        ({"test": torch.ones(2, 3)}, "need [N, D] and [M, D]"),
        ({"train_labels": torch.zeros(3)}, "4 training features but labels of shape (3,)"),
        ({"train_labels": torch.tensor([0, 1, -1, 1])}, "leave unlabelled images out"),
        ({"k": 0}, "each 1 or more"),
        ({"k": ()}, "at least one k"),
        ({"temperature": 0.0}, "must be above 0"),
        ({"classes": 1}, "need 0 to 0"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    given = {"train": torch.eye(4), "train_labels": torch.tensor([0, 1, 0, 1]), "test": torch.ones(2, 4), "k": 2}
    with pytest.raises(ConfigError) as error:
        knn_votes(**(given | change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_interval_is_seeded_symmetric_and_covers_the_mean() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(400) < 0.6, rng.random(400) < 0.5
    difference, low, high = paired_interval(a, b)
    assert difference == pytest.approx(a.mean() - b.mean())
    assert low < difference < high
    assert paired_interval(a, b) == (difference, low, high)
    back, back_low, back_high = paired_interval(b, a)
    assert (back, back_low, back_high) == pytest.approx((-difference, -high, -low), abs=0.003)


def test_interval_is_as_wide_as_resampling_says() -> None:
    """Against the plain bootstrap, drawing indices, for values that are nearly all distinct."""
    rng = np.random.default_rng(2)
    a, b = rng.random(100), rng.random(100)
    draws = rng.integers(0, 100, (10_000, 100))
    expected = np.quantile((a - b)[draws].mean(1), [0.025, 0.975])
    _, low, high = paired_interval(a, b)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.004)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(300):
        a, b = rng.random(200) < 0.5, rng.random(200) < 0.4
        _, low, high = paired_interval(a, b, resamples=1000, seed=trial)
        covered += low <= 0.1 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_pairs_too_few_or_unlike() -> None:
    difference, low, high = paired_interval(np.ones(19), np.zeros(19))
    assert difference == 1
    assert np.isnan([low, high]).all()
    with pytest.raises(ConfigError, match="same units"):
        paired_interval([1, 0], [1])
