"""`scenes[:LEVEL]`: the built-in pictures, which know everything about themselves."""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image

from dino_tower.errors import unknown
from dino_tower.eval.datasets.base import VOID, Box, Dataset, Item, LazyItems
from dino_tower.scenes import LEVELS, Scene, kind_names, make_scene, semantic_names
from dino_tower.scenes.questions import questions_about
from dino_tower.sources.generated import COUNTS

HAS = frozenset({"labels", "masks", "instances", "boxes", "captions", "phrases", "questions"})


def open_scene_set(spelling: str, split: str) -> Dataset:
    """Scenes 0 .. count - 1 of a level: labels are kinds, masks and boxes what the objects are."""
    level = spelling.partition(":")[2] or "easy"
    if level not in LEVELS:
        raise unknown("level of scenes", level, LEVELS, repr(spelling))
    counts = {"val": COUNTS["test"], **COUNTS}
    if split not in counts:
        raise unknown("split of scenes", split, counts, repr(spelling))
    items = LazyItems(counts[split], partial(_item, level, split), partial(_name, split))
    return Dataset(spelling, "scenes", split, "its own numbers", items, HAS, kind_names(level), semantic_names(level))


def _name(split: str, index: int) -> str:
    return f"{split}-{index:06d}"


def _item(level: str, split: str, index: int) -> Item:
    scene = make_scene(level, index, split)
    return Item(
        _name(split, index),
        partial(Image.fromarray, scene.image),
        scene.kind,
        mask_reader=partial(np.array, scene.semantic),
        instance_reader=partial(np.array, scene.instances),
        boxes=_boxes(scene),
        captions=(scene.caption,),
        phrases=scene.phrases,
        question_reader=partial(questions_about, scene, level, index),
    )


def _boxes(scene: Scene) -> tuple[Box, ...]:
    """An object of which too little shows has no class: it is left out."""
    labels = [int(scene.semantic[scene.instances == one.instance][0]) for one in scene.objects]
    return tuple(Box(one.box, label) for one, label in zip(scene.objects, labels, strict=True) if label != VOID)
