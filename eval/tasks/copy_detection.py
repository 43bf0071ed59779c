"""Copy detection (Copydays): which picture was this cut, painted over and compressed copy made from?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dino_tower.eval.datasets.base import Dataset
from dino_tower.eval.descriptors import copy_descriptor, fit_whitening
from dino_tower.eval.retrieval import chance, copy_detection, rank
from dino_tower.eval.stats import Parts, of_values
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks import retrieval
from dino_tower.eval.view import View

RETRIEVED = 20  # places of a list that are looked at
METRICS = {"map": Metric("mAP")}


def run(view: View, data: Split, seed: int) -> Outcome:
    """Class token and GeM of the patches, whitened where there are other pictures to learn that from (a training part),
    and as they are where there are none: fitted on a few pictures of the database, whitening amplifies noise."""
    test, wanted = data.test, retrieval.queries_of(data.test)
    vectors, whitening = described(view, test), "none: no training part"
    if data.train is not None and len(data.train) > 1:
        others = described(view, data.train)
        components = min(others.shape[1], len(others) - 1)
        vectors = fit_whitening(others, components=components)(vectors)
        whitening = f"{components} directions of {len(others)} training pictures"
    queries, database = retrieval.split_vectors(vectors, test)
    values = copy_detection(queries, database, [one.easy for one in wanted], RETRIEVED)
    ids = [item.id for item in test.queries]
    kept, order = set(kept_ids(ids)), rank(queries, database)[:, : retrieval.THUMBS].tolist()
    pictures = {one: retrieval.drawn(test, wanted[i], order[i]) for i, one in enumerate(ids) if one in kept}
    return Outcome({"map": of_values(values)}, ids, {"whitening": whitening}, pictures)


def described(view: View, data: Dataset) -> Tensor:
    """[N, 2 D]."""
    rows, vectors = view.rows(data), view.vectors(data)
    return torch.cat([copy_descriptor(vectors[i : i + 1], rows[i][None]) for i in range(len(data))])


def random_order(data: Split) -> Mapping[str, Parts]:
    """What is to be expected of a list in random order."""
    size = len(data.test.database)
    values = [chance(size, len(one.easy), RETRIEVED) if one.easy else float("nan")
              for one in retrieval.queries_of(data.test)]  # fmt: skip
    return {"map": of_values(values)}


COPY_DETECTION = Task(
    "copy-detection", "copy detection", METRICS, run,
    features=("vectors", "rows"), geometry="own", floor=random_order, truth=retrieval.truth,
)  # fmt: skip
