"""Linear probe of whole pictures: many heads trained side by side, one of them chosen on a slice of train.

DINOv2's protocol: 13 learning rates, the class token with and without the mean patch; its choice between the last block
and the last four is the benchmark's choice of layers. The authors take the best of 52 heads on the reported split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dino_tower.eval.datasets.base import Dataset
from dino_tower.eval.linear_probe import linear_probe
from dino_tower.eval.task import Outcome, Split, Task, labels_of
from dino_tower.eval.tasks import classification
from dino_tower.eval.view import REDUCED, View

EPOCHS = 10
STEPS = 300  # at least, however few pictures there are; within MOST_EPOCHS
MOST_EPOCHS = 100  # DINO's
BATCHES = (16, 256)
PICTURES = 2_000_000  # looked at in training at most: ImageNet once or twice


def run(view: View, data: Split, seed: int) -> Outcome:
    """Standardised features, SGD with momentum 0.9, cosine; learning rate and input chosen on a tenth of train."""
    train, classes = data.trained(), classification.class_count(data)
    labels = labels_of(train)
    epochs, batch = schedule(len(labels))
    probe = linear_probe(inputs(view, train), labels, classes, epochs=epochs, batch=batch, seed=seed)
    seen = probe.standard(inputs(view, data.test)[probe.name])
    parts = classification.scored(probe.classifier(seen).argmax(1), labels_of(data.test), classes)
    chosen = {"input": probe.name, "learning rate": probe.learning_rate}
    return Outcome(parts, [item.id for item in data.test], chosen)


def inputs(view: View, data: Dataset) -> Mapping[str, Tensor]:
    """{name: [N, D]}. A tower without class token has its mean patch in both, and one input."""
    vectors = view.vectors(data)
    if view.layer == REDUCED:
        return {"pooled": vectors}
    means = view.means(data)
    if vectors.shape == means.shape and torch.allclose(vectors, means, atol=1e-5):
        return {"pooled": vectors}
    return {"pooled": vectors, "pooled + mean patch": torch.cat([vectors, means], 1)}


def schedule(pictures: int) -> tuple[int, int]:
    """(epochs, batch): small sets take smaller batches and more epochs, so that every head makes STEPS steps."""
    batch = min(max(pictures * EPOCHS // STEPS, BATCHES[0]), BATCHES[1])
    wanted = math.ceil(STEPS / max(1, pictures // batch))
    return max(1, min(max(EPOCHS, wanted), MOST_EPOCHS, PICTURES // pictures)), batch


LINEAR_PROBE = Task(
    "linear-probe", "linear probe", classification.METRICS, run,
    features=("vectors", "means"), geometry="own", trains=True, seeds=True,
    fits=classification.needs, floor=classification.majority,
)  # fmt: skip
