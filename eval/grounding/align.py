"""Ridge-align: regions mapped onto phrases in closed form, then asked which region a phrase means.

Legend: R regions of a picture, Q phrases, N rows, D features, E text features, S strengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.grounding.grounded import Grounded, Query
from dino_tower.eval.grounding.regions import Features, box_means
from dino_tower.eval.linear_probe import Standard, standardise
from dino_tower.eval.logistic import Linear

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the penalty, in units of N
FOLDS = 5


class Alignment(NamedTuple):
    """score(region, phrase) = - |weight standard(region) + bias - phrase|^2, but for what hangs on the phrase alone.

    `validation`: R@1 of each strength on train.
    """

    head: Linear
    standard: Standard
    strength: float
    validation: dict[float, float]

    def scores(self, regions: Tensor, phrases: Tensor) -> Tensor:
        """regions [R, D] (`box_means`), phrases [Q, E] -> [Q, R], higher is nearer; of E = 1 the number itself."""
        found, asked = self.head(self.standard(regions)), phrases.to(regions.device)
        if (
            asked.shape[1] == 1
        ):  # the text-blind control: more likely to be spoken of is better, and 1.1 is not too much
            return asked @ found.T
        return 2 * asked @ found.T - found.square().sum(1)


def fit_alignment(
    pictures: Sequence[Grounded],
    features: Features,
    texts: Mapping[str, Tensor],
    strengths: Sequence[float] = STRENGTHS,
    folds: int = FOLDS,
    seed: int = 0,
) -> Alignment:
    """Fit on training pictures with their patches [h, w, D] each; texts: phrase -> unit vector [E].

        W, b = argmin  sum over (region, phrase that means it) |W x + b - t|^2
                     + sum over regions that no phrase means   |W x + b|^2  + strength N |W|^2

    x: standardised mean of the patches under the box. Least squares onto 0 for what nobody speaks of makes W x + b the
    chance that the region is spoken of times what is said of it then; with one and the same t for all phrases only the
    first factor is left, which is the text-blind control, fitted by the same function.
    The strength is chosen by R@1 over `folds` parts of these pictures, each judged by a fit without it; at a tie the
    strongest. Raises ConfigError for fewer than two pictures with phrases.
    """
    places = [i for i, picture in enumerate(pictures) if picture.queries]
    if len(places) < 2:
        raise ConfigError(f"ridge-align: {len(places)} training pictures with phrases; needs two or more")
    means = [box_means(features[i], pictures[i].regions, pictures[i].size) for i in places]
    asked = [pictures[i] for i in places]
    tried: dict[float, float] = {}
    if len(strengths) > 1:
        part = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed)) % min(folds, len(asked))
        hits: dict[float, list[float]] = {strength: [] for strength in strengths}
        for held in part.unique().tolist():
            inside = [i for i, one in enumerate(part.tolist()) if one != held]
            judged = [i for i, one in enumerate(part.tolist()) if one == held]
            heads, standard = _ridge(*_rows([asked[i] for i in inside], [means[i] for i in inside], texts), strengths)
            for strength, head in zip(strengths, heads, strict=True):
                found = Alignment(head, standard, strength, {})
                for i in judged:
                    scores = found.scores(means[i], stacked(asked[i].queries, texts))
                    hits[strength] += region_hits(scores, asked[i].queries, 1).tolist()
        tried = {strength: float(np.nanmean(own)) if not np.isnan(own).all() else 0.0 for strength, own in hits.items()}
    best = max(tried, key=lambda one: (tried[one], one)) if tried else strengths[0]
    heads, standard = _ridge(*_rows(asked, means, texts), [best])
    return Alignment(heads[0], standard, best, tried)


def region_hits(scores: Tensor, queries: Sequence[Query], k: int) -> np.ndarray:
    """Is a region that the phrase means among the k best of its pool? scores [Q, R] -> [Q] in 0..1.

    Ties are drawn at random: the value is the chance of a hit, so that equal scores for all give exactly chance.
    NaN where the pool has k regions or fewer: whatever the answer, it would be right.
    """
    return np.array([_hit(row, query, k) for row, query in zip(scores.cpu().double(), queries, strict=True)])


def _hit(row: Tensor, query: Query, k: int) -> float:
    if len(query.pool) <= k:
        return math.nan
    best = float(row[list(query.truth)].max())
    pool = row[list(query.pool)]
    free, tied = k - int((pool > best).sum()), int((pool == best).sum())
    right = int((row[list(query.truth)] == best).sum())
    return 1 - math.comb(tied - right, free) / math.comb(tied, free) if 0 < free < tied else float(free > 0)


def stacked(queries: Sequence[Query], texts: Mapping[str, Tensor]) -> Tensor:
    """The vectors of the phrases [Q, E]. Raises ConfigError for a phrase without one."""
    missing = next((query.text for query in queries if query.text not in texts), None)
    if missing is not None:
        raise ConfigError(f"phrase {missing!r}: no vector for it")
    return torch.stack([texts[query.text] for query in queries])


def _rows(pictures: Sequence[Grounded], means: Sequence[Tensor], texts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Regions [N, D] and what each should be mapped to [N, E]."""
    rows, targets = [], []
    for picture, own in zip(pictures, means, strict=True):
        vectors = stacked(picture.queries, texts)
        for query, vector in zip(picture.queries, vectors, strict=True):
            rows.append(own[list(query.truth)])
            targets.append(vector.expand(len(query.truth), -1))
        silent = set.intersection(*(set(query.pool) for query in picture.queries))
        silent -= {i for query in picture.queries for i in query.truth}
        rows.append(own[sorted(silent)])
        targets.append(vectors.new_zeros(len(silent), vectors.shape[1]))
    return torch.cat(rows), torch.cat(targets).to(rows[0].device)


def _ridge(rows: Tensor, targets: Tensor, strengths: Sequence[float]) -> tuple[list[Linear], Standard]:
    """One head a strength from one decomposition, in float64; the bias is not penalised."""
    standard = standardise(rows)
    x, y = standard(rows).double(), targets.double()
    middle, offset = y.mean(0), x.mean(0)
    values, vectors = torch.linalg.eigh((x - offset).T @ (x - offset))
    onto = vectors.T @ ((x - offset).T @ (y - middle))
    heads = []
    for strength in strengths:
        weight = (vectors @ (onto / (values.clamp(min=0) + strength * len(x))[:, None])).T
        heads.append(Linear(weight.float(), (middle - weight @ offset).float()))
    return heads, standard
