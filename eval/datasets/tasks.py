"""Which tasks a data set allows: what each needs, literally."""

from __future__ import annotations

from dino_tower.eval.datasets.base import Dataset

# task -> what the items must carry (see `base.OFFERS`); nothing: any pictures will do
NEEDS: dict[str, frozenset[str]] = {
    "knn": frozenset({"labels"}),
    "linear-probe": frozenset({"labels"}),
    "logistic": frozenset({"labels"}),
    "linear-segmentation": frozenset({"masks"}),
    "linear-segmentation-full": frozenset({"masks"}),
    "in-context": frozenset({"masks"}),
    "clustering": frozenset({"masks"}),
    "attention-jaccard": frozenset({"masks"}),
    "saliency": frozenset({"masks"}),
    "discovery": frozenset({"boxes"}),
    "video": frozenset({"video"}),
    "correspondence": frozenset({"pairs"}),
    "homography": frozenset(),
    "depth": frozenset({"depth"}),
    "normals": frozenset({"depth", "camera"}),
    "retrieval": frozenset({"queries"}),
    "copy-detection": frozenset({"copies"}),
    "zero-shot": frozenset({"labels"}),
    "open-vocabulary": frozenset({"masks"}),
    "text-image": frozenset({"captions"}),
    "grounding-regions": frozenset({"phrases"}),
    "grounding-maps": frozenset({"phrases"}),
    "vlm-probe": frozenset({"questions"}),
    "health": frozenset(),
}
SINGLE_CLASS = frozenset({"saliency"})  # tasks about one thing against its background
SEVERAL = frozenset({"knn", "linear-probe", "logistic", "zero-shot"})  # tasks that tell classes apart


def allowed_tasks(dataset: Dataset) -> list[str]:
    """The tasks that `dataset` allows, in the order of NEEDS. Saliency needs two regions: background and object."""
    return [
        task
        for task, needs in NEEDS.items()
        if needs <= dataset.has
        and (task not in SINGLE_CLASS or len(dataset.regions) == 2)
        and (task not in SEVERAL or len(dataset.classes) >= 2)
    ]
