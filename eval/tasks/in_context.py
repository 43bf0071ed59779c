"""In-context segmentation (Hummingbird, arXiv 2306.01667): every patch copies the labels of its nearest ones."""

from __future__ import annotations

import torch

from dino_tower.eval.datasets.base import Dataset
from dino_tower.eval.in_context import Memory, full_size, in_context, memory_of, patch_labels
from dino_tower.eval.task import Outcome, Split, Task
from dino_tower.eval.tasks import segmentation
from dino_tower.eval.view import Rows, View

MEMORY = 100_000  # patches
IMAGES = 4_000_000  # patches looked at to choose them


def run(view: View, data: Split, seed: int) -> Outcome:
    """30 neighbours, temperature 0.02. Small training sets are remembered whole."""
    train, classes = data.trained(), segmentation.regions_of(data)
    memory = remembered(view.rows(train), train, classes, seed)
    return segmentation.judge(
        view.rows(data.test), data, lambda found, size: full_size(in_context(memory, found), size)
    )


def remembered(rows: Rows, train: Dataset, classes: int, seed: int) -> Memory:
    """MEMORY patches at most. Pictures are read one by one: together they would take tens of GB."""
    places = segmentation.sampled(rows, train, IMAGES, seed)
    every = sum(h * w for h, w in map(rows.grid, places))
    pictures = (
        (rows[i], patch_labels(segmentation.label_on(rows.grid(i), train[i])[None], rows.grid(i), classes)[0])
        for i in places
    )
    each = MEMORY // len(places) if every > MEMORY else None
    return memory_of(pictures, each, torch.Generator().manual_seed(seed))


IN_CONTEXT = Task(
    "in-context", "in-context segmentation", segmentation.METRICS, run,
    trains=True, seeds=True, floor=segmentation.majority, truth=segmentation.truth,
)  # fmt: skip
