"""In-context segmentation (Hummingbird, arXiv 2306.01667): every patch copies the labels of its nearest ones."""

from __future__ import annotations

import torch

from dino_tower.eval.in_context import build_memory, full_size, in_context, patch_labels
from dino_tower.eval.task import Outcome, Split, Task
from dino_tower.eval.tasks import segmentation
from dino_tower.eval.view import View

MEMORY = 100_000  # patches
IMAGES = 4_000_000  # patches looked at to choose them


def run(view: View, data: Split, seed: int) -> Outcome:
    """30 neighbours, temperature 0.02. Small training sets are remembered whole."""
    train, classes = data.trained(), segmentation.regions_of(data)
    rows = view.rows(train)
    patches, labels = segmentation.training(rows, train, IMAGES, seed)
    shares = patch_labels(labels, (patches.shape[1], patches.shape[2]), classes)
    size = MEMORY if patches.shape[:3].numel() > MEMORY else None
    memory = build_memory(patches, shares, size, torch.Generator().manual_seed(seed))
    return segmentation.judge(
        view.rows(data.test), data, lambda found, size: full_size(in_context(memory, found), size)
    )


IN_CONTEXT = Task(
    "in-context", "in-context segmentation", segmentation.METRICS, run,
    trains=True, seeds=True, floor=segmentation.majority, truth=segmentation.truth,
)  # fmt: skip
