"""Does the class token look at the objects? Overlap of the last block's attention with what is labelled (DINO)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

from dino_tower.attention import Jaccard, jaccard
from dino_tower.eval.raw import RawPixels
from dino_tower.eval.stats import Parts, of_values
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks import segmentation
from dino_tower.eval.tasks.discovery import no_self_attention
from dino_tower.eval.view import View
from dino_tower.pictures import attention_picture

METRICS = {
    "best-head": Metric("Jaccard, best head"),  # chosen for each label with the truth in hand: kinder with more heads
    "mean-head": Metric("Jaccard, mean head"),
    "head-average": Metric("Jaccard, heads averaged"),
}
BACKGROUNDS = ("background", "ground", "unlabelled", "unlabeled")


def run(view: View, data: Split, seed: int) -> Outcome:
    """The smallest set of patches with 60 % of the attention, against each label of a picture at its full size.

    The mean over labels, then over pictures; pictures without a labelled object say nothing. Void leaves the union.
    """
    rows, background = view.attention(data.test), background_of(data)
    ids = [item.id for item in data.test]
    kept = set(kept_ids(ids))
    scores: list[Jaccard] = []
    pictures: dict[str, Image.Image] = {}
    for place, item in enumerate(data.test):
        attention = rows[place].permute(2, 0, 1)
        scores.append(jaccard(attention, item.mask(), background=background))
        if item.id in kept:
            shown = segmentation.small(item.image())
            pictures[item.id] = attention_picture(shown, attention).resize(shown.size, Image.Resampling.BICUBIC)
    return Outcome(_parts(scores), ids, {"heads": rows.width}, pictures)


def background_of(data: Split) -> int | None:
    """0 where masks have a background; None where each label is a thing (ADE20K, Cityscapes)."""
    return 0 if data.test.regions and data.test.regions[0].lower() in BACKGROUNDS else None


def _parts(scores: list[Jaccard]) -> dict[str, Parts]:
    columns = np.array([tuple(one) for one in scores]).reshape(-1, 3).T
    return {name: of_values(column) for name, column in zip(METRICS, columns, strict=True)}


def everywhere(data: Split) -> Mapping[str, Parts]:
    """A mask that covers the whole picture."""
    whole, background = torch.ones(1, 1, 1), background_of(data)
    return _parts([jaccard(whole, item.mask(), keep=1.0, background=background) for item in data.test])


def fits(view: View, data: Split) -> str | None:
    """Attention there must be; a tower with neither class token nor pooling query says so itself when asked for it."""
    if isinstance(view.tower, RawPixels):
        return "raw pixels have no attention"
    return no_self_attention(view, data)


ATTENTION_JACCARD = Task(
    "attention-jaccard", "attention on objects", METRICS, run,
    features=("attention",), fits=fits, floor=everywhere, truth=segmentation.truth,
    version=2,
)  # fmt: skip
