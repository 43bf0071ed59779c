"""Evaluation on the same features: k-NN, video label propagation and TokenCut against their published forms.

The baselines are composed here from plain PyTorch and SciPy as the authors compute them (DINO `knn_classifier` once for
each k of its default list, DINO `label_propagation`, TokenCut `ncut`). Masks must be equal, or the file fails.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.linalg import eigh
from torch import Tensor

from dino_tower.eval.tokencut import tokencut
from dino_tower.eval.video import masks, propagate
from dino_tower.knn import knn_votes

WIDTH, CLASSES, KS = 384, 1000, (10, 20, 100, 200)
VIDEO, CONTEXT, PATCH = (30, 52), 8, 16  # 480 x 832 pixels
PICTURE = (30, 30)  # 480 x 480 pixels


def published_knn(train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float = 0.07) -> Tensor:
    """The votes of a hundredth of the test images at a time, by way of one-hot rows [B, k, C]."""
    keys, votes = train.t(), []
    step = len(test) // 100
    for start in range(0, len(test), step):
        queries = test[start : start + step]
        distances, indices = (queries @ keys).topk(k, largest=True, sorted=True)
        neighbours = labels.view(1, -1).expand(len(queries), -1).gather(1, indices)
        one_hot = torch.zeros(len(queries) * k, CLASSES).scatter_(1, neighbours.view(-1, 1), 1)
        weight = distances.div(temperature).exp()
        probs = (one_hot.view(len(queries), -1, CLASSES) * weight.view(len(queries), -1, 1)).sum(1)
        votes.append(probs.sort(1, True)[1][:, :5])
    return torch.cat(votes)


def ours_knn(train: Tensor, labels: Tensor, test: Tensor, ks: tuple[int, ...]) -> dict[int, Tensor]:
    """All k in one pass."""
    votes = knn_votes(train, labels, test, ks, classes=CLASSES)
    return {k: one.sort(1, True)[1][:, :5] for k, one in votes.items()}


def published_propagation(frame: Tensor, context: Tensor, labels: Tensor, near: Tensor, k: int = 5) -> Tensor:
    """All patches of all frames, then the mask of neighbours."""
    h, w = frame.shape[:2]
    queries, sources = (
        F.normalize(frame.flatten(0, 1), dim=1),
        F.normalize(context.flatten(1, 2).transpose(1, 2), dim=1),
    )
    weight = torch.exp(torch.bmm(queries.unsqueeze(0).repeat(len(context), 1, 1), sources) / 0.1)
    weight *= near.unsqueeze(0).repeat(len(context), 1, 1)
    weight = weight.transpose(2, 1).reshape(-1, h * w)
    best, _ = torch.topk(weight, dim=0, k=k)
    weight[weight < best.min(0).values] = 0
    weight = weight / weight.sum(0, keepdim=True)
    rows = labels.flatten(2).transpose(2, 1).reshape(-1, labels.shape[1]).T
    return torch.mm(rows, weight).reshape(-1, h, w)


def neighbours(h: int, w: int, radius: int) -> Tensor:
    """[h w, h w] of 0 and 1; the published code makes it once a video, so it is not timed."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], dim=1)
    return ((place[:, None] - place[None]).abs().amax(-1) <= radius).float()


def published_cut(keys: Tensor, tau: float = 0.2, epsilon: float = 1e-5) -> np.ndarray:
    """The object's mask by the dense generalised eigenproblem."""
    rows = F.normalize(keys.flatten(0, 1), p=2)
    affinity = (rows @ rows.transpose(1, 0)).numpy() > tau
    affinity = np.where(affinity.astype(float) == 0, epsilon, affinity)
    degree = np.diag(affinity.sum(1))
    _, vectors = eigh(degree - affinity, degree, subset_by_index=[1, 2])
    second = vectors[:, 0]
    side, seed = second > second.sum() / len(second), np.argmax(np.abs(second))
    side = side if side[seed] else ~side
    parts, _ = ndimage.label(side.reshape(keys.shape[:2]))
    return parts == parts[np.unravel_index(seed, keys.shape[:2])]


def scene(grid: tuple[int, int], step: int, rng: torch.Generator, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features of a picture of three regions, two of them moving, and their labels: [h, w, D], [h, w]."""
    h, w = grid
    ids = torch.zeros(grid, dtype=torch.int64)
    ids[h // 5 : h // 2, w // 4 + step : w // 2 + step] = 1
    ids[3 * h // 5 :, w // 2 - step : 3 * w // 4 - step] = 2
    centres = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(9))
    return centres[ids] + noise * torch.randn(h, w, WIDTH, generator=rng), ids


def row(name: str, times: list[tuple[float, float]], target: float | None) -> dict[str, object]:
    """Milliseconds of (ours, published) of each round as a row of the table."""
    ratios = sorted(published / ours for ours, published in times)
    found: dict[str, object] = {
        "name": name,
        "baseline": "published form",
        "ours_ms": 1000 * statistics.median(ours for ours, _ in times),
        "baseline_ms": 1000 * statistics.median(published for _, published in times),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
    }
    return found if target is None else found | {"target": target}


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def knn(train_images: int = 50_000, test_images: int = 5_000, rounds: int = 2) -> Iterator[dict[str, object]]:
    """DINO's four k, each of which its script computes anew, and a single k."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=rng)
    labels, truth = torch.arange(train_images) % CLASSES, torch.arange(test_images) % CLASSES
    train, test = (
        F.normalize(centres[y] + 2 * torch.randn(len(y), WIDTH, generator=rng), dim=1) for y in (labels, truth)
    )
    shape = f"k-NN {train_images:,} x {test_images:,}, {WIDTH} wide"
    for name, ks, target in (("k 10, 20, 100, 200", KS, 2.0), ("k 20", (20,), None)):
        times = []
        for _ in range(rounds):
            ours, found = timed(lambda ks=ks: ours_knn(train, labels, test, ks))
            published, expected = timed(lambda ks=ks: {k: published_knn(train, labels, test, k) for k in ks})
            times.append((ours, published))
            assert all((found[k][:, 0] == expected[k][:, 0]).double().mean() > 0.999 for k in ks)  # type: ignore[index]
        yield row(f"{shape}, {name}", times, target)


def video(rounds: int = 4) -> Iterator[dict[str, object]]:
    """A frame with the first one and seven more as context."""
    rng = torch.Generator().manual_seed(1)
    frames, labels = zip(*(scene(VIDEO, step, rng) for step in range(CONTEXT + rounds)), strict=True)
    context = torch.stack(frames[:CONTEXT])
    known = torch.stack([F.one_hot(one, 3).permute(2, 0, 1).float() for one in labels[:CONTEXT]])
    near, times = neighbours(*VIDEO, 12), []
    size = (VIDEO[0] * PATCH, VIDEO[1] * PATCH)
    for frame in frames[CONTEXT:]:
        ours, found = timed(lambda frame=frame: masks(propagate(frame, context, known), size))
        published, expected = timed(lambda frame=frame: masks(published_propagation(frame, context, known, near), size))
        assert torch.equal(found, expected), "the propagated masks differ"  # type: ignore[arg-type]
        times.append((ours, published))
    yield row(f"DAVIS propagation, {VIDEO[0]} x {VIDEO[1]} patches, {CONTEXT} frames of context", times, 2.0)


def discovery(rounds: int = 8) -> Iterator[dict[str, object]]:
    """Pictures of a clear to a barely visible object."""
    rng, times = torch.Generator().manual_seed(2), []
    for i in range(rounds):
        keys, _ = scene(PICTURE, i % 4, rng, noise=1.0 + 0.15 * i)
        ours, found = timed(lambda keys=keys: tokencut(keys, PATCH, (480, 480)).mask.numpy())
        published, expected = timed(lambda keys=keys: published_cut(keys))
        assert np.array_equal(found, expected), "the masks differ"  # type: ignore[arg-type]
        times.append((ours, published))
    yield row(f"TokenCut, {PICTURE[0]} x {PICTURE[1]} patches", times, 2.0)


def main() -> None:
    """Print one JSON row a measure."""
    for measure in (discovery, video, knn):
        for found in measure():
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
