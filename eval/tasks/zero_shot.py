"""Zero-shot classification: the class whose name is most like the picture, for towers with a text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dino_tower.eval.datasets.base import Dataset
from dino_tower.eval.stats import Parts, of_values
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids, labels_of
from dino_tower.eval.tasks.drawing import card
from dino_tower.eval.tasks.segmentation import small
from dino_tower.eval.view import View
from dino_tower.eval.zero_shot import class_weights, named

# The seven prompts that CLIP's authors found enough of their eighty (notebooks/Prompt_Engineering_for_ImageNet.ipynb).
PROMPTS = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
    "art of the {}.", "a photo of the small {}.",
)  # fmt: skip
PLAIN = ("a photo of a {}.",)
TOP = 5
TEXTS_AT_A_TIME = 128
METRICS = {"top-1": Metric("top-1"), "top-5": Metric("top-5"), "plain": Metric("top-1, one prompt")}


def no_text(view: View, data: Split) -> str | None:
    """Why not: there is no text encoder."""
    return None if view.tower.has_text else "no text encoder"


def name_of(stored: str) -> str:
    """A class as people call it: "tench, Tinca tinca" and "car_side" are "tench" and "car side"."""
    return stored.split(",")[0].replace("_", " ").strip()


def texts_of(view: View, texts: Sequence[str], patches: bool = False) -> Tensor:
    """[N, E] float32, on the CPU."""
    parts = [texts[i : i + TEXTS_AT_A_TIME] for i in range(0, len(texts), TEXTS_AT_A_TIME)]
    return torch.cat([view.tower.text(part, patches).float().cpu() for part in parts])  # type: ignore[call-arg]


def class_texts(view: View, names: Sequence[str], prompts: Sequence[str] = PROMPTS, patches: bool = False) -> Tensor:
    """One vector a class [C, E]: the mean over its prompts."""
    filled = [prompt.format(name_of(name)) for name in names for prompt in prompts]
    return class_weights(texts_of(view, filled, patches).unflatten(0, (len(names), len(prompts))))


def run(view: View, data: Split, seed: int) -> Outcome:
    """Cosine with the mean of seven prompts, and with a single one."""
    test, labels = data.test, labels_of(data.test)
    embedded = F.normalize(view.embed(test), dim=1)
    scores = embedded @ class_texts(view, test.classes).T
    plain = embedded @ class_texts(view, test.classes, PLAIN).T
    parts = {"top-1": of_values(named(scores, labels)), "plain": of_values(named(plain, labels))}
    if len(test.classes) > TOP:  # else it is right by itself
        parts["top-5"] = of_values(named(scores, labels, TOP))
    ids = [item.id for item in test]
    kept = set(kept_ids(ids))
    pictures = {one: _drawn(scores[i], int(labels[i]), test) for i, one in enumerate(ids) if one in kept}
    return Outcome(parts, ids, pictures=pictures)


def _drawn(scores: Tensor, label: int, data: Dataset) -> Image.Image:
    """The classes that were thought of."""
    best = scores.topk(min(3, len(scores))).indices.tolist()
    return card([name_of(data.classes[one]) for one in best], [one == label for one in best])


def guess(data: Split) -> Mapping[str, Parts]:
    """Any class, by chance."""
    classes, count = len(data.test.classes), len(data.test)
    parts = {name: of_values(np.full(count, 1 / classes)) for name in ("top-1", "plain")}
    return parts | ({"top-5": of_values(np.full(count, TOP / classes))} if classes > TOP else {})


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The picture, and its class."""
    wanted = set(ids)
    return {
        item.id: (small(item.image()), card([name_of(data.test.classes[item.label])], [True]))
        for item in data.test
        if item.id in wanted and item.label is not None
    }


ZERO_SHOT = Task(
    "zero-shot", "zero-shot classification", METRICS, run,
    features=("embed",), geometry="own", text=True, fits=no_text, floor=guess, truth=truth,
)  # fmt: skip
