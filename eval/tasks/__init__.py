"""The tasks of the benchmark, one file each, and the suites they form."""

from __future__ import annotations

from dino_tower.eval.task import Task
from dino_tower.eval.tasks.attention_jaccard import ATTENTION_JACCARD
from dino_tower.eval.tasks.clustering import CLUSTERING
from dino_tower.eval.tasks.copy_detection import COPY_DETECTION
from dino_tower.eval.tasks.correspondence import CORRESPONDENCE
from dino_tower.eval.tasks.depth import DEPTH
from dino_tower.eval.tasks.discovery import DISCOVERY
from dino_tower.eval.tasks.grounding import GROUNDING_MAPS, GROUNDING_REGIONS
from dino_tower.eval.tasks.health import HEALTH
from dino_tower.eval.tasks.homography import HOMOGRAPHY
from dino_tower.eval.tasks.in_context import IN_CONTEXT
from dino_tower.eval.tasks.knn import KNN
from dino_tower.eval.tasks.linear_probe import LINEAR_PROBE
from dino_tower.eval.tasks.linear_segmentation import LINEAR_SEGMENTATION
from dino_tower.eval.tasks.linear_segmentation_full import LINEAR_SEGMENTATION_FULL
from dino_tower.eval.tasks.logistic import LOGISTIC
from dino_tower.eval.tasks.normals import NORMALS
from dino_tower.eval.tasks.open_vocabulary import OPEN_VOCABULARY
from dino_tower.eval.tasks.retrieval import RETRIEVAL
from dino_tower.eval.tasks.saliency import SALIENCY
from dino_tower.eval.tasks.text_image import TEXT_IMAGE
from dino_tower.eval.tasks.video import VIDEO
from dino_tower.eval.tasks.vlm_probe import VLM_PROBE
from dino_tower.eval.tasks.zero_shot import ZERO_SHOT

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        KNN, LINEAR_PROBE, LOGISTIC, LINEAR_SEGMENTATION, IN_CONTEXT, CLUSTERING, ATTENTION_JACCARD, SALIENCY,
        DISCOVERY, DEPTH, NORMALS,
        GROUNDING_REGIONS, GROUNDING_MAPS, VIDEO, CORRESPONDENCE, HOMOGRAPHY, RETRIEVAL, COPY_DETECTION,
        ZERO_SHOT, TEXT_IMAGE, OPEN_VOCABULARY, HEALTH, LINEAR_SEGMENTATION_FULL, VLM_PROBE,
    )
}  # fmt: skip

SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("knn", "linear-segmentation", "in-context", "attention-jaccard", "discovery", "health"),
    "dense": (
        "knn", "linear-segmentation", "in-context", "clustering", "attention-jaccard", "saliency", "discovery", "depth",
        "normals", "video", "correspondence", "homography", "grounding-regions", "health",
    ),
    # but for what takes hours on a GPU, or minutes a tower
    "full": tuple(name for name in TASKS if name not in (LINEAR_SEGMENTATION_FULL.name, VLM_PROBE.name)),
}  # fmt: skip
