"""Towers with text: zero-shot classification, text-image retrieval, multi-label precision. A column of their own.

Legend: N images, T texts, C classes, E width of the shared space.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError


def class_weights(prompts: Tensor) -> Tensor:
    """One vector a class from its prompts [C, P, E] -> [C, E]: the mean of unit vectors, of unit length."""
    return F.normalize(F.normalize(prompts.float(), dim=-1).mean(1), dim=-1)


def named(scores: Tensor, labels: Tensor, top: int = 1) -> np.ndarray:
    """Is the true class among the `top` scores? scores [N, C], labels [N] -> bool [N], the parts of the accuracy."""
    best = scores.topk(min(top, scores.shape[1]), dim=1).indices
    return (best == labels.to(best)[:, None]).any(1).cpu().numpy()


def retrieval_hits(queries: Tensor, candidates: Tensor, pairs: Tensor, k: int) -> np.ndarray:
    """Is any right candidate among the k nearest? queries [N, E], candidates [M, E], pairs bool [N, M] -> bool [N].

    "Recall@k" as CLIP papers use the word: 1 if at least one caption of an image is found. With texts as queries
    it is image retrieval, with images as queries (pairs transposed) text retrieval. k above M looks at all.
    """
    if pairs.shape != (len(queries), len(candidates)):
        raise ConfigError(f"retrieval: {len(queries)} queries, {len(candidates)} others, pairs {tuple(pairs.shape)}")
    likeness = F.normalize(queries.float(), dim=1) @ F.normalize(candidates.float(), dim=1).T
    nearest = likeness.topk(min(k, len(candidates)), dim=1).indices
    return pairs.to(nearest.device).gather(1, nearest).any(1).cpu().numpy()


def average_precision_per_class(scores: Tensor, truth: Tensor) -> np.ndarray:
    """Multi-label average precision of each class [C]: scores and truth (0/1) [N, C]; mean precision at the positives.

    NaN for a class without positives, which the published code scores 0.
    """
    order = scores.sort(dim=0, descending=True, stable=True).indices
    ranked = truth.gather(0, order.to(truth.device)).double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1, device=ranked.device)[:, None]
    return ((precision * ranked).sum(0) / ranked.sum(0)).cpu().numpy()
