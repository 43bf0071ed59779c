"""Open-vocabulary segmentation: every patch gets the class whose name is most like it; nothing is trained.

A CLIP's patches were never trained to mean anything: its last attention is changed so that they stay local (MaskCLIP,
SCLIP). A tower with text alignment has patches that were trained against texts, and takes them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.eval.dense_attention import FORMS, KEEPS_BLOCK, class_scores, heads_of, joined_heads
from dino_tower.eval.in_context import full_size
from dino_tower.eval.miou import Areas, areas, joined, miou_parts
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks import segmentation
from dino_tower.eval.tasks.zero_shot import class_texts, no_text
from dino_tower.eval.view import View
from dino_tower.families import family_of
from dino_tower.tokens import Tokens
from dino_tower.tower import Tower

CHANGED = ("maskclip", "sclip")  # forms of the last attention of a CLIP
# what stands for a tower
OWN_FORM = {"clip": "sclip", "dino_tower_text": "vanilla", "vision-text-dual-encoder": "vanilla"}
METRICS = {"miou": Metric("mIoU"), "vanilla": Metric("mIoU, as trained")} | {
    form: Metric(f"mIoU, {words}") for form, words in zip(CHANGED, ("MaskCLIP", "SCLIP"), strict=True)
}

Embed = Callable[[int], dict[str, Tensor]]


def why_not(view: View, data: Split) -> str | None:
    """No text encoder, or one that single patches cannot be compared with."""
    if reason := no_text(view, data):
        return reason
    kind = view.tower.text_kind  # type: ignore[union-attr]  # raw pixels have no text
    return None if kind in OWN_FORM else f"a {kind} pools all patches at once: single ones have no embedding"


def run(view: View, data: Split, seed: int) -> Outcome:
    """Whole pictures, no sliding window; scores scaled up to the label's size. All classes of the masks are asked for,
    the background by that word."""
    classes, test = segmentation.regions_of(data), data.test
    texts = class_texts(view, test.regions, patches=True)
    tower = cast(Tower, view.tower)  # raw pixels do not fit
    own, embed = OWN_FORM[tower.text_kind], (_clip if tower.text_kind == "clip" else _aligned)(view, data, tower)
    ids = [item.id for item in test]
    kept = set(kept_ids(ids))
    counts: dict[str, list[Areas]] = {}
    pictures: dict[str, Image.Image] = {}
    for i, item in enumerate(test):
        truth = item.mask()
        for form, patches in embed(i).items():
            found = full_size(class_scores(patches, texts), (truth.shape[0], truth.shape[1]))[0].numpy()
            counts.setdefault(form, []).append(areas(found, truth, classes))
            if form == own and item.id in kept:
                pictures[item.id] = segmentation.drawn(found.astype(np.uint8))
    parts = {form: miou_parts(joined(each)) for form, each in counts.items()}
    return Outcome({"miou": parts[own], **parts}, ids, {"form": own}, pictures)


def _aligned(view: View, data: Split, tower: Tower) -> Embed:
    rows, vectors = view.rows(data.test), view.vectors(data.test)

    @torch.no_grad()
    def embed(place: int) -> dict[str, Tensor]:
        patches, cls = (one.to(tower.device, tower.dtype) for one in (rows[place][None], vectors[place][None]))
        return {"vanilla": tower.project(Tokens(patches, cls)).float().cpu()}

    return embed


def _clip(view: View, data: Split, tower: Tower) -> Embed:
    cls, rows = view.entering(data.test)

    @torch.no_grad()
    def embed(place: int) -> dict[str, Tensor]:
        h, w = rows.grid(place)
        hidden = torch.cat([cls[place][None], rows[place].flatten(0, 1)])[None].to(tower.device, tower.dtype)
        found = {form: last_block(tower, hidden, form) for form in ("vanilla", *CHANGED)}
        return {form: tower.project(Tokens(one[:, 1:].unflatten(1, (h, w)), one[:, 0])).float().cpu()
                for form, one in found.items()}  # fmt: skip

    return embed


def last_block(tower: Tower, hidden: Tensor, form: str) -> Tensor:
    """Tokens [1, N, D] that enter a CLIP's last block -> those that leave its final norm, by a form of attention."""
    family = family_of(tower.model)
    block: Any = list(family.blocks(tower.model))[-1]
    attention = block.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight, bias = torch.cat([one.weight for one in projections]), torch.cat([one.bias for one in projections])
    heads = heads_of(block.layer_norm1(hidden), weight, bias, attention.num_heads)
    mixed = joined_heads(FORMS[form](*heads), attention.out_proj.weight, attention.out_proj.bias)
    if KEEPS_BLOCK[form]:
        mixed = hidden + mixed
        mixed = mixed + block.mlp(block.layer_norm2(mixed))
    return family.norm(tower.model, mixed)


OPEN_VOCABULARY = Task(
    "open-vocabulary", "open-vocabulary segmentation", METRICS, run,
    features=("rows", "vectors"), text=True, fits=why_not, floor=segmentation.majority, truth=segmentation.truth,
)  # fmt: skip
