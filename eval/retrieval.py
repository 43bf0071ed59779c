"""Image retrieval as revisited Oxford and Paris score it, and copy detection as Copydays does.

Legend: Q queries, N images of the database, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError, unknown

SETUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # what counts as found, what is passed over
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
Lists = Sequence[Sequence[int] | np.ndarray | Tensor]


class Retrieval(NamedTuple):
    """Of each query [Q]: average precision, NaN where it has no positives; precision at each of `cutoffs` [Q, k]."""

    average_precision: np.ndarray
    precision_at: np.ndarray


def rank(queries: Tensor, database: Tensor, chunk: int = 1024) -> Tensor:
    """Database indices from most to least alike by cosine, one row a query: [Q, D], [N, D] -> [Q, N]; ties in order."""
    keys = F.normalize(database.float(), dim=1).T
    parts = [(F.normalize(part.float(), dim=1) @ keys).sort(dim=1, descending=True, stable=True).indices
             for part in queries.split(chunk)]  # fmt: skip
    return torch.cat(parts) if parts else torch.zeros(0, len(database), dtype=torch.int64)


def average_precision(positions: Sequence[int] | np.ndarray, positives: int) -> float:
    """Area under precision-recall by trapezoids (Holidays, Oxford): `positions`, from 0, of the positives found.

    AP = 1 / positives * sum_j (j / position_j + (j + 1) / (position_j + 1)) / 2,  first term 1 at position 0
    """
    place = np.asarray(positions, dtype=np.float64)
    order = np.arange(len(place))
    before = np.where(place == 0, 1.0, order / np.maximum(place, 1))
    return float((before + (order + 1) / (place + 1)).sum() / 2 / positives)


def retrieval_scores(
    ranks: Tensor | np.ndarray, truth: Mapping[str, Lists], setup: str = "medium", cutoffs: Sequence[int] = (1, 5, 10)
) -> Retrieval:
    """Score ranked lists [Q, N] (`rank`) against truth {"easy", "hard", "junk": one list of indices a query}.

    Medium: easy and hard images are to be found; hard: hard ones only, and the easy ones become junk. Junk is taken out
    of the list before positions are counted (revisitop `compute_map`). Precision at k is taken at the position of the
    last positive where that comes before k, as the published code does.
    Raises ConfigError for an unknown setup and for lists that do not fit.
    """
    if setup not in SETUPS:
        raise unknown("retrieval setup", setup, SETUPS)
    found, passed_over = SETUPS[setup]
    table = np.asarray(ranks)
    if any(len(lists) != len(table) for lists in truth.values()):
        raise ConfigError(f"retrieval: {len(table)} ranked lists, but truth for "
                          f"{', '.join(f'{len(v)} ({k})' for k, v in truth.items())} queries")  # fmt: skip
    precision = np.full(len(table), np.nan)
    at = np.full((len(table), len(cutoffs)), np.nan)
    for query, row in enumerate(table):
        good, junk = (np.concatenate([np.asarray(truth[name][query], dtype=np.int64) for name in names])
                      for names in (found, passed_over))  # fmt: skip
        if not len(good):
            continue
        kept = row[~np.isin(row, junk)]
        positions = np.isin(kept, good).nonzero()[0]
        precision[query] = average_precision(positions, len(good))
        for column, cutoff in enumerate(cutoffs):
            limit = min(int(positions.max()) + 1, cutoff) if len(positions) else cutoff
            at[query, column] = (positions < limit).sum() / limit
    return Retrieval(precision, at)


def copy_detection(
    queries: Tensor, database: Tensor, positives: Sequence[Sequence[int]], retrieved: int = 20
) -> np.ndarray:
    """Average precision of each query [Q] among its `retrieved` nearest images (DINO `eval_copy_detection`).

    positives: the originals of each query, as indices of the database. An original beyond that list adds 0. NaN for a
    query without originals: the published code divides by zero.
    """
    if len(positives) != len(queries):
        raise ConfigError(f"copy detection: {len(queries)} queries, originals for {len(positives)}")
    ranks = rank(queries, database)[:, :retrieved].cpu().numpy()
    return np.array(
        [average_precision(np.isin(row, own).nonzero()[0], len(own)) if len(own) else np.nan
         for row, own in zip(ranks, positives, strict=True)]
    )  # fmt: skip


def chance(images: int, positives: int, retrieved: int | None = None) -> float:
    """The expected `average_precision` of a random order of `images`, of which the first `retrieved` are looked at.

    rank r holds a positive with probability p / n, and each one before it with (p - 1) / (n - 1):
    E = 1 / (2 n) * sum_r (before_r + (1 + (r - 1) q) / r),  before_1 = 1, before_r = q = (p - 1) / (n - 1)
    """
    places = np.arange(1, min(images, retrieved or images) + 1)
    other = (positives - 1) / max(images - 1, 1)
    before = np.where(places == 1, 1.0, other)
    return float((before + (1 + (places - 1) * other) / places).sum() / (2 * images))
