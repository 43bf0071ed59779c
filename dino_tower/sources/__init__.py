"""Images from anywhere behind one spelling: folders, lists, Hub datasets, tar shards, built-in scenes, and mixtures."""

from dino_tower.sources.base import NO_LABEL, Part, Sample, Source, SourceOptions, labels_among
from dino_tower.sources.mixture import Mixture
from dino_tower.sources.opening import OPENERS, open_source, open_sources, probe
from dino_tower.sources.workers import ReadBatch, load_batches, rank_batches, read_batches

__all__ = [
    "NO_LABEL",
    "OPENERS",
    "Mixture",
    "Part",
    "ReadBatch",
    "Sample",
    "Source",
    "SourceOptions",
    "labels_among",
    "load_batches",
    "open_source",
    "open_sources",
    "probe",
    "rank_batches",
    "read_batches",
]
