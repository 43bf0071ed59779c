"""What the tasks that tell classes apart share: scores a picture and a class, the commonest class, what they need."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.eval.stats import Parts, of_ratio, of_values
from dino_tower.eval.task import Metric, Split, labels_of
from dino_tower.eval.view import View

METRICS = {"accuracy": Metric("top-1"), "class-mean": Metric("mean over classes")}


def class_count(data: Split) -> int:
    """C: every class that either split names or holds."""
    highest = max(int(labels_of(part).max()) + 1 for part in (data.trained(), data.test))
    return max(highest, len(data.test.classes))


def scored(found: Tensor, truth: Tensor, classes: int) -> dict[str, Parts]:
    """Predicted and true classes [N]: accuracy over pictures, and its mean over the classes that test holds.

    A class without test pictures leaves the mean over classes; counted as 0 it would lower every tower's score.
    """
    hits = (found.cpu() == truth).double()
    own = F.one_hot(truth, classes).double()
    return {"accuracy": of_values(hits), "class-mean": of_ratio((own * hits[:, None]).numpy(), own.numpy())}


def majority(data: Split) -> Mapping[str, Parts]:
    """Everything is of the class that is most frequent in training."""
    truth, most = labels_of(data.test), labels_of(data.trained()).bincount().argmax()
    return scored(most.expand(len(truth)), truth, class_count(data))


def needs(view: View, data: Split) -> str | None:
    """Two classes and four pictures to train on: a slice of them chooses, the rest is fitted."""
    labels = labels_of(data.trained())
    if len(torch.unique(labels)) < 2:
        return "all training pictures are of one class: there is nothing to tell apart"
    if len(labels) < 4:
        return f"{len(labels)} training pictures; a slice of them chooses, so that it takes 4 or more"
    return None
