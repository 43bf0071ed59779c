"""The two grounding probes with all their controls: one call a tower, the same questions for all.

Legend: a picture's features are its patches [h, w, D], of the whole picture; E text features.

The fifth control, the untrained tower, is another call with the features of `random:TOWER` and controls=False.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.grounding.align import fit_alignment, region_hits, stacked
from dino_tower.eval.grounding.answers import BLIND, CENTRE, CHANCE, LARGEST, POSITION, PROBE, Answers, collected
from dino_tower.eval.grounding.bilinear import LEARNING_RATES, STEPS, fit_map
from dino_tower.eval.grounding.grounded import Grounded, apart
from dino_tower.eval.grounding.phrases import HASHED, TextEncoder, embed_phrases
from dino_tower.eval.grounding.pointing import (
    Values,
    area_scores,
    centre_map,
    centre_scores,
    judge_boxes,
    judge_maps,
    largest,
)
from dino_tower.eval.grounding.regions import Features, box_means, position_tokens

RECALLS = {"r@1": 1, "r@5": 5}
Row = Callable[[Features, Features, Mapping[str, Tensor]], tuple[list[Values], dict[str, Any]]]


def region_probe(
    train: Sequence[Grounded],
    train_features: Features,
    test: Sequence[Grounded],
    test_features: Features,
    encoder: TextEncoder | str | Path = HASHED,
    seed: int = 0,
    controls: bool = True,
) -> Answers:
    """Ridge-align (`fit_alignment`): which of the picture's boxes does a phrase mean? Metrics "r@1", "r@5".

    controls=False leaves only the row "probe": the others are alike for towers that share a grid, but for "text-blind".
    Raises ConfigError for features that do not fit, a picture in both parts, and a part without phrases.
    """
    _check(train, train_features, test, test_features)
    asked = [(i, picture) for i, picture in enumerate(test) if picture.queries]

    def row(of_train: Features, of_test: Features, texts: Mapping[str, Tensor]) -> tuple[list[Values], dict[str, Any]]:
        found = fit_alignment(train, of_train, texts, seed=seed)
        answers = []
        for i, picture in asked:
            means = box_means(of_test[i], picture.regions, picture.size)
            answers.append(_recalls(found.scores(means, stacked(picture.queries, texts)), picture))
        return answers, {"strength": found.strength, "r@1 on train": found.validation[found.strength]}

    rows, chosen = _fitted(row, train_features, test_features, _vectors(train, test, encoder), controls)
    if controls:
        rows[CENTRE] = [_recalls(_for_all(centre_scores(one), one), one) for _, one in asked]
        rows[LARGEST] = [_recalls(_for_all(area_scores(one), one), one) for _, one in asked]
        rows[CHANCE] = [_recalls(torch.zeros(len(one.queries), len(one.regions)), one) for _, one in asked]
    return collected(test, rows, chosen)


def map_probe(
    train: Sequence[Grounded],
    train_features: Features,
    test: Sequence[Grounded],
    test_features: Features,
    encoder: TextEncoder | str | Path = HASHED,
    seed: int = 0,
    controls: bool = True,
    steps: int = STEPS,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Answers:
    """Bilinear map (`fit_map`): where is it, among all patches? Metrics "pointing", "energy", "acc@0.5" (`judge_maps`).

    "largest box" knows the true boxes, which no other row does. controls=False leaves only the row "probe".
    Raises ConfigError for features that do not fit, a picture in both parts, and a part without phrases.
    """
    _check(train, train_features, test, test_features)
    asked = [(i, picture) for i, picture in enumerate(test) if picture.queries]

    def row(of_train: Features, of_test: Features, texts: Mapping[str, Tensor]) -> tuple[list[Values], dict[str, Any]]:
        found = fit_map(train, of_train, texts, learning_rates=learning_rates, steps=steps, seed=seed)
        answers = [judge_maps(found.maps(of_test[i], stacked(one.queries, texts)), one) for i, one in asked]
        rate = found.learning_rate
        return answers, {"learning rate": rate, "loss on the slice of train": found.validation.get(rate)}

    rows, chosen = _fitted(row, train_features, test_features, _vectors(train, test, encoder), controls)
    if controls:
        grids = [(test_features[i].shape[0], test_features[i].shape[1]) for i, _ in asked]
        both = [(one, grid) for (_, one), grid in zip(asked, grids, strict=True)]
        rows[CENTRE] = [judge_maps(_for_all(centre_map(grid), one), one) for one, grid in both]
        rows[LARGEST] = [judge_boxes([largest(query, one) for query in one.queries], one) for one, _ in both]
        rows[CHANCE] = [judge_maps(_for_all(torch.full(g, 1 / (g[0] * g[1])), one), one) for one, g in both]
    return collected(test, rows, chosen)


def _fitted(
    row: Row, train: Features, test: Features, texts: Mapping[str, Tensor], controls: bool
) -> tuple[dict[str, list[Values]], dict[str, Any]]:
    """The rows that are fitted: with the texts, without them, and without the pictures."""
    rows = {}
    rows[PROBE], chosen = row(train, test, texts)
    if controls:
        rows[BLIND], _ = row(train, test, {text: torch.ones(1) for text in texts})
        rows[POSITION], _ = row(_places(train), _places(test), texts)
    return rows, chosen


def _places(features: Features) -> list[Tensor]:
    """`position_tokens` in place of each picture's patches; pictures of one grid share them."""
    grids = [(features[i].shape[0], features[i].shape[1]) for i in range(len(features))]
    made = {grid: position_tokens(grid).to(features[0].device) for grid in dict.fromkeys(grids)}
    return [made[grid] for grid in grids]


def _vectors(
    train: Sequence[Grounded], test: Sequence[Grounded], encoder: TextEncoder | str | Path
) -> dict[str, Tensor]:
    """Phrase -> unit vector [E]."""
    texts = sorted({query.text for picture in (*train, *test) for query in picture.queries})
    return dict(zip(texts, embed_phrases(texts, encoder), strict=True))


def _check(
    train: Sequence[Grounded], train_features: Features, test: Sequence[Grounded], test_features: Features
) -> None:
    """Raises ConfigError. One picture's features at a time: they may lie on a disk."""
    apart(train, test)
    for part, pictures, features in (("train", train, train_features), ("test", test, test_features)):
        if len(pictures) != len(features):
            raise ConfigError(f"grounding: features of {len(features)} pictures for {len(pictures)} of {part}")
        for i, picture in enumerate(pictures):
            own = features[i]
            if own.ndim != 3 or 0 in own.shape or own.shape[2] != train_features[0].shape[-1]:
                first = list(train_features[0].shape)
                raise ConfigError(
                    f"grounding: features of {picture.id} have the shape {list(own.shape)}, the first {first};"
                    " needs [h, w, D] with one D for all pictures"
                )
            if not own.isfinite().all():
                raise ConfigError(f"grounding: the features of {picture.id} are not all finite numbers")


def _for_all(one: Tensor, picture: Grounded) -> Tensor:
    """The same answer for every phrase of the picture."""
    return one.expand(len(picture.queries), *one.shape)


def _recalls(scores: Tensor, picture: Grounded) -> Values:
    return {name: region_hits(scores, picture.queries, k) for name, k in RECALLS.items()}
