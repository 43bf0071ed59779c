"""Does the CLS token look at the objects? The "emergent segmentation" score of DINO's last-block attention.

Legend: heads = attention heads, h x w = patch grid, H x W = pixels of the label picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError


class Jaccard(NamedTuple):
    """Overlap (0..1) of attention masks with the true objects. NaN where a picture has no labelled object.

    More heads make `best_head` a kinder oracle, so the three are reported together.
    """

    best_head: float  # for each label the head that fits it best, chosen with the truth in hand
    mean_head: float  # what a head picked at random reaches
    head_average: float  # one mask from the attention averaged over heads: no choice at all


def mass_mask(attention: Tensor, keep: float = 0.6) -> Tensor:
    """The smallest set of patches that holds the share `keep` of the attention: attention [..., h, w] -> bool, same.

        sort ascending, divide by the sum;  a patch stays iff the running sum up to and with it is > 1 - keep

    (DINO `visualize_attention`.) A map that is zero everywhere gives an empty mask.
    Raises ConfigError for a keep outside (0, 1] and for fewer than two dimensions.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"attention mask: keep {keep}; must be above 0 and at most 1 (0.6 is DINO's)")
    if attention.ndim < 2:
        raise ConfigError(f"attention mask: shape {tuple(attention.shape)}; need [..., h, w]")
    flat = attention.detach().double().flatten(-2)
    value, index = flat.sort(dim=-1, stable=True)
    running = value.cumsum(-1) / value.sum(-1, keepdim=True)
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, index, running > 1 - keep)
    return kept.unflatten(-1, attention.shape[-2:])


def jaccard(
    attention: Tensor,
    target: Tensor | np.ndarray,
    keep: float = 0.6,
    void: int = 255,
    background: int | None = 0,
    void_in_union: bool = False,
) -> Jaccard:
    """Score one picture: attention [heads, h, w] (CLS -> patches, last block) against target [H, W] integer labels.

        mask = nearest-upsampled mass_mask;  for each label: IoU(mask of a head, target == label);  mean over labels

    Pixels labelled `void` leave both intersection and union; void_in_union=True counts a mask on them as wrong, as the
    code published with DINO's figures does. background=None: label 0 is a thing like any other.
    The target must show what the tower saw: the same crop, at any resolution.
    Raises ConfigError for shapes that do not fit.
    """
    truth = torch.as_tensor(target).to(attention.device)
    if attention.ndim != 3 or truth.ndim != 2:
        raise ConfigError(
            f"attention Jaccard: attention {tuple(attention.shape)} and target {tuple(truth.shape)}; "
            "need [heads, h, w] and [H, W]"
        )
    heads = len(attention)
    masks = mass_mask(torch.cat([attention, attention.mean(0, keepdim=True)]), keep)
    masks = F.interpolate(masks[None].float(), size=tuple(truth.shape), mode="nearest")[0] > 0.5
    counted = torch.ones_like(truth, dtype=torch.bool) if void_in_union else truth != void
    labels = [label for label in truth.unique().tolist() if label not in (void, background)]
    if not labels:
        return Jaccard(float("nan"), float("nan"), float("nan"))
    scores = torch.zeros(len(labels), heads + 1, dtype=torch.float64)
    for row, label in enumerate(labels):
        thing = truth == label
        both = (masks & thing & counted).sum((1, 2))
        either = ((masks | thing) & counted).sum((1, 2))
        scores[row] = (both.double() / either.double()).cpu()
    per_head, averaged = scores[:, :heads], scores[:, heads]
    return Jaccard(float(per_head.amax(1).mean()), float(per_head.mean()), float(averaged.mean()))


def mean_jaccard(scores: Iterable[Jaccard]) -> Jaccard:
    """The mean over pictures; those without a labelled object (NaN) are left out. NaN if none is left."""
    table = np.array([tuple(score) for score in scores], dtype=np.float64).reshape(-1, 3)
    table = table[~np.isnan(table).any(1)]
    return Jaccard(*(table.mean(0).tolist() if len(table) else [float("nan")] * 3))
