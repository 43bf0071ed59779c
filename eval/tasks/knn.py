"""k-NN classification of whole pictures, as DINO and DINOv2 report it: nothing is trained, nothing chosen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dino_tower.eval.stats import Parts, of_values
from dino_tower.eval.task import Metric, Outcome, Split, Task, labels_of
from dino_tower.eval.view import View
from dino_tower.knn import knn_correct

KS = (10, 20, 5, 1)


def run(view: View, data: Split, seed: int) -> Outcome:
    """The class token (or the mean of the normed patches), cosine, votes weighted by exp(similarity / 0.07)."""
    train = data.trained()
    hits = knn_correct(view.vectors(train), labels_of(train), view.vectors(data.test), labels_of(data.test), KS)
    return Outcome({f"{k}-nn": of_values(hit) for k, hit in hits.items()}, [item.id for item in data.test])


def majority(data: Split) -> Mapping[str, Parts]:
    """Everything is of the class that is most frequent in training."""
    most = int(labels_of(data.trained()).bincount().argmax())
    hits = of_values(np.asarray(labels_of(data.test) == most))
    return {f"{k}-nn": hits for k in KS}


KNN = Task(
    "knn", "k-NN classification", {f"{k}-nn": Metric(f"{k}-NN") for k in KS}, run,
    features=("vectors",), geometry="own", trains=True, floor=majority,
)  # fmt: skip
