"""Linear segmentation: what a linear layer on frozen patches knows about the class of each pixel."""

from __future__ import annotations

from dataclasses import replace

from dino_tower.eval.linear_segmentation import fit_segmentation
from dino_tower.eval.task import Outcome, Split, Task
from dino_tower.eval.tasks import segmentation
from dino_tower.eval.view import View

PATCHES = 500_000  # trained on at most


def run(view: View, data: Split, seed: int) -> Outcome:
    """Softmax regression on standardised patches; its strength is chosen on a tenth of the training pictures."""
    train = data.trained()
    patches, labels = segmentation.training(view.rows(train), train, PATCHES, seed)
    head = fit_segmentation(patches, labels, segmentation.regions_of(data), seed=seed)
    found = segmentation.judge(view.rows(data.test), data, head.predict)
    return replace(found, chosen={"strength": head.strength})


def choose(view: View, data: Split, seed: int) -> Outcome:
    """Least squares with one strength: its order of layers is that of the long form, in a tenth of the time."""
    train = data.trained()
    patches, labels = segmentation.training(view.rows(train), train, PATCHES, seed)
    head = fit_segmentation(patches, labels, segmentation.regions_of(data), (1.0,), seed=seed, solver="ridge")
    return segmentation.judge(view.rows(data.test), data, head.predict)


LINEAR_SEGMENTATION = Task(
    "linear-segmentation", "linear segmentation", segmentation.METRICS, run,
    trains=True, seeds=True, choose=choose, floor=segmentation.majority, truth=segmentation.truth,
)  # fmt: skip
