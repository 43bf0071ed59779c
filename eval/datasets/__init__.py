"""Labelled data as it lies on disk, one item at a time, for the benchmark."""

from dino_tower.eval.datasets.base import Box, Dataset, Item, NoSplit, Pair, Relevance
from dino_tower.eval.datasets.opening import LAYOUTS, open_dataset
from dino_tower.eval.datasets.tasks import NEEDS, allowed_tasks

__all__ = [
    "LAYOUTS",
    "NEEDS",
    "Box",
    "Dataset",
    "Item",
    "NoSplit",
    "Pair",
    "Relevance",
    "allowed_tasks",
    "open_dataset",
]
