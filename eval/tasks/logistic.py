"""Logistic regression of whole pictures on the class token: convex, so that nothing is left to luck but the slice."""

from __future__ import annotations

from dino_tower.eval.linear_probe import standardise
from dino_tower.eval.logistic import STRENGTHS, logistic_regression
from dino_tower.eval.task import Outcome, Split, Task, labels_of
from dino_tower.eval.tasks import classification
from dino_tower.eval.view import View

COARSE = 4  # every fourth of DINOv2's 45 strengths is tried first, then those around the best


def run(view: View, data: Split, seed: int) -> Outcome:
    """L2, L-BFGS; the strength is chosen on a tenth of train, then the head is fitted on all of it.

    DINOv2's protocol on standardised features: widths and scales differ by tower, and L-BFGS ends on all of them.
    """
    train, classes = data.trained(), classification.class_count(data)
    vectors, labels = view.vectors(train), labels_of(train)
    standard = standardise(vectors)
    rows = standard(vectors)
    first = logistic_regression(rows, labels, classes, STRENGTHS[::COARSE], seed=seed)
    near = STRENGTHS.index(first.strength)
    around = STRENGTHS[max(0, near - COARSE + 1) : near + COARSE]
    best = logistic_regression(rows, labels, classes, around, seed=seed)
    found = best.classifier(standard(view.vectors(data.test))).argmax(1)
    parts = classification.scored(found, labels_of(data.test), classes)
    return Outcome(parts, [item.id for item in data.test], {"strength": best.strength})


LOGISTIC = Task(
    "logistic", "logistic regression", classification.METRICS, run,
    features=("vectors",), geometry="own", trains=True, seeds=True,
    fits=classification.needs, floor=classification.majority,
)  # fmt: skip
