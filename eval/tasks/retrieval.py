"""Retrieval (revisited Oxford and Paris): other pictures of the same building, from most to least alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Relevance
from dino_tower.eval.retrieval import SETUPS, chance, rank, retrieval_scores
from dino_tower.eval.stats import Parts, of_values
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks.drawing import found_pictures
from dino_tower.eval.tasks.segmentation import small
from dino_tower.eval.view import View

METRICS = {name: Metric(f"mAP, {name}") for name in ("medium", "hard")}
THUMBS = 5


def queries_of(data: Dataset) -> list[Relevance]:
    """What each query should find. Raises ConfigError where a place lies outside of the database."""
    found = [item.query for item in data.queries if item.query is not None]
    size = len(data.database)
    for item, query in zip(data.queries, found, strict=True):
        wrong = [place for place in (*query.easy, *query.hard, *query.junk) if not 0 <= place < size]
        if wrong:
            raise ConfigError(f"{data.name}: {item.id} should find picture {wrong[0]} of {size}")
    return found


def split_vectors(vectors: Tensor, data: Dataset) -> tuple[Tensor, Tensor]:
    """Rows [N, D] of all items: those of the queries, those of the database."""
    is_query = [item.query is not None for item in data]
    return vectors[is_query], vectors[[not one for one in is_query]]


def run(view: View, data: Split, seed: int) -> Outcome:
    """Class tokens by cosine; trapezoid average precision, junk taken out, queries without positives left out."""
    test, wanted = data.test, queries_of(data.test)
    order = rank(*split_vectors(view.vectors(test), test))
    truth = {name: [getattr(one, name) for one in wanted] for name in ("easy", "hard", "junk")}
    parts = {name: of_values(retrieval_scores(order, truth, name).average_precision) for name in METRICS}
    ids = [item.id for item in test.queries]
    kept = set(kept_ids(ids))
    pictures = {one: drawn(test, wanted[i], order[i, :THUMBS].tolist()) for i, one in enumerate(ids) if one in kept}
    return Outcome(parts, ids, pictures=pictures)


def drawn(data: Dataset, query: Relevance, places: Sequence[int]) -> Image.Image:
    """Thumbnails of what was found."""
    good = [None if place in query.junk else place in (*query.easy, *query.hard) for place in places]
    return found_pictures([data.database[place] for place in places], good)


def random_order(data: Split) -> Mapping[str, Parts]:
    """What is to be expected of a list in random order."""
    size, parts = len(data.test.database), {}
    for name in METRICS:
        values = []
        for query in queries_of(data.test):
            good, junk = (sum(len(getattr(query, one)) for one in names) for names in SETUPS[name])
            values.append(chance(size - junk, good) if good else np.nan)
        parts[name] = of_values(values)
    return parts


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The query, and some of what it should find."""
    wanted, found = set(ids), {}
    for item in data.test.queries:
        if item.id in wanted and item.query is not None:
            found[item.id] = (
                small(item.image()), drawn(data.test, item.query, (*item.query.easy, *item.query.hard)[:THUMBS])
            )  # fmt: skip
    return found


RETRIEVAL = Task(
    "retrieval", "image retrieval", METRICS, run,
    features=("vectors",), geometry="own", floor=random_order, truth=truth,
)  # fmt: skip
