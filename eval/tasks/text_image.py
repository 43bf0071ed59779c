"""Text-image retrieval: the picture that a caption belongs to, and a caption of a picture, among all of the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.stats import Parts, of_ratio, of_values
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks.drawing import card, found_pictures
from dino_tower.eval.tasks.segmentation import small
from dino_tower.eval.tasks.zero_shot import no_text, texts_of
from dino_tower.eval.view import View
from dino_tower.eval.zero_shot import retrieval_hits

KS = (1, 5, 10)
METRICS = {f"image@{k}": Metric(f"text to image R@{k}") for k in KS} | {
    f"text@{k}": Metric(f"image to text R@{k}") for k in KS
}
QUERIES_AT_A_TIME = 512
THUMBS = 4


def captioned(data: Dataset) -> list[int]:
    """Places of the pictures that have captions: the others take no part."""
    return [place for place, item in enumerate(data) if item.captions]


def why_not(view: View, data: Split) -> str | None:
    """No text encoder, or nothing to choose from."""
    few = "fewer than two pictures with captions" if len(captioned(data.test)) < 2 else None
    return no_text(view, data) or few


def run(view: View, data: Split, seed: int) -> Outcome:
    """R@k: is any right one among the k nearest by cosine? Captions are counted one by one, but a unit is a picture."""
    places = captioned(data.test)
    items = [data.test[place] for place in places]
    images = F.normalize(view.embed(data.test)[places], dim=1)
    captions = [caption for item in items for caption in item.captions]
    owner = torch.tensor([i for i, item in enumerate(items) for _ in item.captions])
    texts = F.normalize(texts_of(view, captions), dim=1)
    own, counts = torch.arange(len(items)), owner.bincount(minlength=len(items)).numpy()
    parts = {}
    for k in KS:
        hits = _hits(texts, images, owner, own, k)
        parts[f"image@{k}"] = of_ratio(np.bincount(owner.numpy(), hits, len(items)), counts)
        parts[f"text@{k}"] = of_values(_hits(images, texts, own, owner, k))
    ids = [item.id for item in items]
    kept, firsts = set(kept_ids(ids)), np.concatenate([[0], counts.cumsum()[:-1]])
    pictures = {
        one: _drawn(items, i, (images @ texts[int(firsts[i])]).topk(min(THUMBS, len(items))).indices.tolist())
        for i, one in enumerate(ids)
        if one in kept
    }
    return Outcome(parts, ids, pictures=pictures)


def _hits(queries: Tensor, candidates: Tensor, of_query: Tensor, of_candidate: Tensor, k: int) -> np.ndarray:
    """`retrieval_hits`, some queries at a time: all pairs of a large set do not fit into memory."""
    found = [
        retrieval_hits(part, candidates, of[:, None] == of_candidate, k)
        for part, of in zip(queries.split(QUERIES_AT_A_TIME), of_query.split(QUERIES_AT_A_TIME), strict=True)
    ]
    return np.concatenate(found)


def _drawn(items: Sequence[Item], own: int, places: Sequence[int]) -> Image.Image:
    """What the first caption of a picture finds."""
    return found_pictures([items[place] for place in places], [place == own for place in places])


def by_chance(data: Split) -> Mapping[str, Parts]:
    """k of the candidates, drawn blindly."""
    counts = np.array([len(data.test[place].captions) for place in captioned(data.test)])
    images, texts = len(counts), int(counts.sum())
    parts = {}
    for k in KS:
        parts[f"image@{k}"] = of_ratio(counts * min(1.0, k / images), counts)
        missed = np.ones(len(counts))
        for drawn in range(min(k, texts)):
            missed *= np.clip((texts - counts - drawn) / (texts - drawn), 0, 1)
        parts[f"text@{k}"] = of_values(1 - missed)
    return parts


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The picture, and the caption that is asked with."""
    wanted = set(ids)
    return {
        item.id: (small(item.image()), card([item.captions[0]]))
        for item in data.test
        if item.id in wanted and item.captions
    }


TEXT_IMAGE = Task(
    "text-image", "text-image retrieval", METRICS, run,
    features=("embed",), geometry="own", text=True, fits=why_not, floor=by_chance, truth=truth,
)  # fmt: skip
