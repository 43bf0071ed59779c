"""Clustering segmentation: do the patches fall into the classes by themselves?

Legend: N patches, D features, K clusters, C classes, B images. Which matching was used is part of the result: with as
many clusters as one likes many-to-one approaches the score of a supervised head.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.miou import VOID, Areas

MATCHINGS = ("iou", "precision", "pixels")
DISTANCES_AT_A_TIME = 2**24


def k_means(
    features: Tensor, clusters: int, iterations: int = 50, restarts: int = 3, seed: int = 0, normalise: bool = True
) -> tuple[Tensor, Tensor]:
    """(centres [K, D], cluster of each row [N]): Lloyd's algorithm from k-means++ starts, the best of `restarts`.

    features [N, D]; normalise: rows to unit length first, so that squared distance is 2 - 2 cosine.
    A cluster that loses all its rows restarts at the row farthest from its centre.
    Raises ConfigError for fewer rows than clusters and for features that are not finite.
    """
    if features.ndim != 2 or len(features) < clusters or clusters < 1:
        raise ConfigError(f"k-means: features {tuple(features.shape)}, {clusters} clusters; need [N, D], N >= K >= 1")
    rows = F.normalize(features.float(), dim=1) if normalise else features.float()
    if not bool(rows.isfinite().all()):
        raise ConfigError("k-means: some features are not finite")
    rng = torch.Generator().manual_seed(seed)
    best: tuple[float, Tensor] | None = None
    for _ in range(restarts):
        centres = _plus_plus(rows, clusters, rng)
        inertia = float("inf")
        for _ in range(iterations):
            nearest, distance = assign(rows, centres)
            previous, inertia = inertia, float(distance.sum())
            if previous - inertia <= 1e-6 * inertia:
                break
            counts = torch.bincount(nearest, minlength=clusters)
            centres = torch.zeros_like(centres).index_add_(0, nearest, rows) / counts.clamp(min=1)[:, None]
            empty = (counts == 0).nonzero()[:, 0]
            centres[empty] = rows[distance.topk(len(empty)).indices]
        if best is None or inertia < best[0]:
            best = (inertia, centres)
    assert best is not None
    return best[1], assign(rows, best[1])[0]


def assign(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(nearest centre [N], squared distance to it [N]) for rows [N, D] prepared as the centres [K, D] were."""
    step = max(1, DISTANCES_AT_A_TIME // len(centres))
    half = centres.square().sum(1) / 2
    found = [(half - part @ centres.T).min(1) for part in rows.split(step)]
    distance = 2 * torch.cat([one.values for one in found]) + rows.square().sum(1)
    return torch.cat([one.indices for one in found]), distance.clamp(min=0)


def _plus_plus(rows: Tensor, clusters: int, rng: torch.Generator) -> Tensor:
    """Each next centre is a row drawn with probability proportional to its squared distance from those there are."""
    chosen = [int(torch.randint(len(rows), (1,), generator=rng))]
    distance = (rows - rows[chosen[0]]).square().sum(1)
    for _ in range(clusters - 1):
        share = distance.double().cumsum(0)
        point = torch.rand(1, generator=rng, dtype=torch.float64).to(share.device) * share[-1]
        chosen.append(min(int(torch.searchsorted(share, point)), len(rows) - 1))
        distance = torch.minimum(distance, (rows - rows[chosen[-1]]).square().sum(1))
    return rows[chosen]


def confusion(clusters: Tensor, target: Tensor, n_clusters: int, classes: int, void: int = VOID) -> Tensor:
    """Pixels of each class in each cluster, per image: clusters and target [B, H, W] -> [B, C, K]; void left out.

    Raises ConfigError for unlike shapes and for ids out of range.
    """
    if clusters.shape != target.shape or target.ndim != 3:
        raise ConfigError(f"clustering: clusters {tuple(clusters.shape)}, labels {tuple(target.shape)}; need [B, H, W]")
    counted = target != void
    for kind, ids, limit in (("label", target[counted], classes), ("cluster", clusters[counted], n_clusters)):
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < limit:
            raise ConfigError(f"clustering: {kind} ids {int(ids.min())} to {int(ids.max())}; need 0 to {limit - 1}")
    image = torch.arange(len(target), device=target.device)[:, None, None]
    cell = (image * classes + target) * n_clusters + clusters
    counts = torch.bincount(cell[counted].to(torch.int64), minlength=len(target) * classes * n_clusters)
    return counts.reshape(len(target), classes, n_clusters)


def one_to_one(counts: Tensor, by: str = "iou") -> Tensor:
    """The class of each cluster [K], -1 for clusters left over: the best assignment of different classes (Hungarian).

    counts [C, K] over the whole data set. by: "iou" maximises the sum of IoUs, "pixels" the pixels classified rightly.
    """
    rows, columns = linear_sum_assignment(_agreement(counts, by), maximize=True)
    mapping = torch.full((counts.shape[1],), -1, dtype=torch.int64)
    mapping[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return mapping.to(counts.device)


def many_to_one(counts: Tensor, by: str = "precision") -> Tensor:
    """The class of each cluster [K]: the one it fits best by itself, so that several clusters may share a class."""
    return torch.as_tensor(_agreement(counts, by).argmax(0)).to(counts.device)


def _agreement(counts: Tensor, by: str) -> np.ndarray:
    if by not in MATCHINGS:
        raise unknown("matching", by, MATCHINGS)
    table = counts.double().cpu().numpy()
    if by == "pixels":
        return table
    cluster = table.sum(0, keepdims=True)
    under = cluster if by == "precision" else table.sum(1, keepdims=True) + cluster - table
    return table / np.maximum(under, 1e-8)


def matched_areas(counts: Tensor, mapping: Tensor) -> Areas:
    """`miou.Areas` [B, C] after naming clusters: counts [B, C, K], mapping [K].

    A cluster mapped to -1 belongs to no class: its pixels are missed, and no class is charged with them.
    """
    classes = counts.shape[1]
    named = F.one_hot(mapping.clamp(min=0), classes) * (mapping >= 0)[:, None]  # [K, C]
    as_class = (counts.double() @ named.double().to(counts.device)).to(torch.int64)  # [B, true class, predicted class]
    both, found, true = as_class.diagonal(dim1=1, dim2=2), as_class.sum(1), counts.sum(2)
    return Areas(both, found + true - both, found, true)
