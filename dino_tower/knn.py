"""Weighted nearest-neighbour classification: how good a tower's features are before anything is trained on them.

Legend: N train images, M test images, D feature width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError

# Similarities held at a time (2^25 floats = 128 MiB): any number of test images fits beside any training set.
SIMILARITIES_AT_A_TIME = 2**25
MIN_UNITS = 20  # below this many paired units a bootstrap interval means nothing


def knn_votes(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    k: int | Sequence[int] = (10, 20),
    temperature: float = 0.07,
    classes: int | None = None,
    chunk: int | None = None,
    leave_self_out: bool = False,
) -> dict[int, Tensor]:
    """Each class's share of the votes of the k nearest training images (DINO `knn_classifier`, DINOv2 `KnnModule`).

        sim = cosine(test, train);  vote of neighbour n = exp(sim_n / temperature);  score_c = votes for c / all votes

    train [N, D] and test [M, D], any scale (normalised here), on any device; train_labels [N] integers from 0.
    classes: C, by default the largest training label + 1. chunk: test images at a time, by default what fits 128 MiB.
    leave_self_out: test IS train, each image is judged by the others (row i of test has no vote from row i of train).
    Returns {k: scores [M, C] float32}, rows sum to 1. With fewer than k training images all of them vote.
    Raises ConfigError for shapes that do not fit, an empty training set, a label outside 0..C-1, a k below 1.
    """
    ks = [k] if isinstance(k, int) else list(k)
    labels = torch.as_tensor(train_labels, dtype=torch.int64, device=train.device)
    _check(train, labels, test, ks, temperature, classes)
    if leave_self_out and (len(train) != len(test) or len(train) < 2):
        raise ConfigError(f"k-NN: {len(train)} and {len(test)} images; leave_self_out needs the same two or more twice")
    classes = int(labels.max()) + 1 if classes is None else classes
    nearest = min(max(ks), len(train) - leave_self_out)
    chunk = chunk or max(1, SIMILARITIES_AT_A_TIME // len(train))
    keys = F.normalize(train.float(), dim=1)
    scores: dict[int, list[Tensor]] = {one: [] for one in ks}
    for start in range(0, len(test), chunk):
        queries = F.normalize(test[start : start + chunk].to(train.device).float(), dim=1)
        likeness = queries @ keys.T
        if leave_self_out:
            own = torch.arange(len(queries), device=likeness.device)
            likeness[own, own + start] = -torch.inf
        similarity, index = likeness.topk(nearest, dim=1)
        # The nearest neighbour's vote is scaled to 1: a small temperature cannot overflow, and shares do not change.
        votes = ((similarity - similarity[:, :1]) / temperature).exp()
        voted = labels[index]
        for one in ks:
            total = votes.new_zeros(len(queries), classes)
            total.scatter_add_(1, voted[:, :one], votes[:, :one])
            scores[one].append(total / total.sum(1, keepdim=True))
    empty = train.new_zeros(0, classes, dtype=torch.float32)
    return {one: torch.cat(parts) if parts else empty for one, parts in scores.items()}


def knn_correct(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int | Sequence[int] = (10, 20),
    temperature: float = 0.07,
    top: int = 1,
    leave_self_out: bool = False,
) -> dict[int, np.ndarray]:
    """{k: bool [M]}: is the true class among the `top` with most votes? Arguments and errors as for `knn_votes`.

    What `paired_interval` compares two towers by. top = 5 needs k >= 5 to mean anything; as in DINO's
    `knn_classifier`, at most k classes count as named.
    """
    truth = torch.as_tensor(test_labels, dtype=torch.int64, device=train.device)
    if truth.shape != (len(test),):
        raise ConfigError(f"k-NN: {len(test)} test features but labels of shape {tuple(truth.shape)}")
    classes = 1 + max(int(torch.as_tensor(train_labels).max()), int(truth.max()) if len(truth) else 0)
    scores = knn_votes(train, train_labels, test, k, temperature, classes, leave_self_out=leave_self_out)
    correct = {}
    for one, score in scores.items():
        named = score.sort(dim=1, descending=True).indices[:, : min(top, one)]
        correct[one] = (named == truth[:, None]).any(1).cpu().numpy()
    return correct


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int | Sequence[int] = (10, 20),
    temperature: float = 0.07,
    top: int = 1,
    leave_self_out: bool = False,
) -> dict[int, float]:
    """{k: share of test images classified rightly, 0..1}. Arguments and errors as for `knn_correct`."""
    correct = knn_correct(train, train_labels, test, test_labels, k, temperature, top, leave_self_out)
    return {one: float(hits.mean()) if len(hits) else float("nan") for one, hits in correct.items()}


def paired_interval(
    a: np.ndarray | Sequence[float] | Tensor,
    b: np.ndarray | Sequence[float] | Tensor,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(mean of a - b, low, high): the paired bootstrap interval over the units both were measured on.

    a, b [M]: one value a unit, in the same order: right or wrong per image, IoU per image; the result is in their unit.
    Below 20 units low and high are NaN: there is nothing to resample from. Raises ConfigError for unlike lengths.
    """
    first, second = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (a, b))
    if len(first) != len(second) or len(first) == 0:
        raise ConfigError(f"paired interval: {len(first)} values against {len(second)}; both need the same units")
    difference = first - second
    if len(difference) < MIN_UNITS:
        return float(difference.mean()), float("nan"), float("nan")
    # Drawing M units with replacement draws how often each distinct difference occurs: the same distribution,
    # and for right-or-wrong data three numbers a resample instead of M.
    values, counts = np.unique(difference, return_counts=True)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 2**22 // len(values))
    for start in range(0, resamples, step):
        drawn = rng.multinomial(len(difference), counts / counts.sum(), size=min(step, resamples - start))
        means[start : start + step] = drawn @ values / len(difference)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(difference.mean()), float(low), float(high)


def _check(
    train: Tensor, labels: Tensor, test: Tensor, ks: Sequence[int], temperature: float, classes: int | None
) -> None:
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ConfigError(
            f"k-NN: features of shape {tuple(train.shape)} and {tuple(test.shape)}; need [N, D] and [M, D]"
        )
    if len(train) == 0:
        raise ConfigError("k-NN: no training features")
    if labels.shape != (len(train),):
        raise ConfigError(f"k-NN: {len(train)} training features but labels of shape {tuple(labels.shape)}")
    if int(labels.min()) < 0 or (classes is not None and int(labels.max()) >= classes):
        raise ConfigError(
            f"k-NN: labels run from {int(labels.min())} to {int(labels.max())}; "
            f"need 0 to {'C-1' if classes is None else classes - 1}: leave unlabelled images out"
        )
    if not ks or min(ks) < 1:
        raise ConfigError(f"k-NN: k {list(ks)}; need at least one k, each 1 or more")
    if temperature <= 0:
        raise ConfigError(f"k-NN: temperature {temperature}; must be above 0 (0.07 is DINO's)")
