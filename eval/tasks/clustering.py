"""Clustering segmentation: do patches fall into the classes by themselves, without a label?

k-means on the patches of the judged pictures, as many clusters as classes. Labels only give the clusters their names:
one class each (Hungarian, by IoU), or each the class that most of it is (by precision), so that several may share one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.eval.clustering import confusion, k_means, many_to_one, matched_areas, one_to_one
from dino_tower.eval.in_context import full_size
from dino_tower.eval.miou import miou_parts
from dino_tower.eval.stats import Parts, score
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks import segmentation
from dino_tower.eval.view import View

METRICS = {"one-to-one": Metric("mIoU, one-to-one"), "many-to-one": Metric("mIoU, many-to-one")}
PATCHES = 50_000  # that centres are fitted on, the same number from every picture
ITERATIONS, RESTARTS = 30, 3


def run(view: View, data: Split, seed: int) -> Outcome:
    """Unit-length patches; the likeness to each centre is scaled up to the label's full size, the most alike wins."""
    classes, rows = segmentation.regions_of(data), view.rows(data.test)
    sample = rows.sample(PATCHES, seed)
    centres, _ = k_means(sample, classes, ITERATIONS, RESTARTS, seed)
    half = centres.square().sum(1) / 2  # nearest = largest product less half the squared length
    counts, shown = [], {}
    ids = [item.id for item in data.test]
    kept = set(kept_ids(ids))
    for place, item in enumerate(data.test):
        truth = torch.from_numpy(item.mask())
        likeness = F.normalize(rows.stack([place]), dim=-1) @ centres.T - half
        clusters = full_size(likeness, (truth.shape[0], truth.shape[1]))
        counts.append(confusion(clusters, truth[None].long(), classes, classes))
        if item.id in kept:
            shown[item.id] = clusters[0].to(torch.uint8)
    table = torch.cat(counts)
    names = one_to_one(table.sum(0))
    pictures = {one: segmentation.drawn(names[found.long()].numpy().astype(np.uint8)) for one, found in shown.items()}
    return Outcome(_parts(table), ids, {"clusters": classes}, pictures)


def _parts(table: Tensor) -> dict[str, Parts]:
    """Of pixels of each class in each cluster of each picture [B, C, K]."""
    total = table.sum(0)
    return {
        "one-to-one": miou_parts(matched_areas(table, one_to_one(total))),
        "many-to-one": miou_parts(matched_areas(table, many_to_one(total))),
    }


def chance(data: Split) -> Mapping[str, Parts]:
    """The better of everything in one cluster and of pixels thrown into clusters by chance (the expected counts)."""
    classes = segmentation.regions_of(data)
    masks = (torch.from_numpy(item.mask())[None].long() for item in data.test)
    whole = torch.cat([confusion(torch.zeros_like(mask), mask, classes, classes) for mask in masks])
    spread = (whole.sum(2, keepdim=True) // classes).expand_as(whole)
    found = [_parts(one) for one in (whole, spread)]
    return {name: max((one[name] for one in found), key=score) for name in METRICS}


CLUSTERING = Task(
    "clustering", "clustering segmentation", METRICS, run,
    seeds=True, floor=chance, truth=segmentation.truth,
)  # fmt: skip
