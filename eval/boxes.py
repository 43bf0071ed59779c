"""Boxes around patches, their overlap with the truth, and CorLoc.

Legend: h x w patch grid; boxes (x0, y0, x1, y1) in pixels, x1 and y1 excluded; T true boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from dino_tower.attention import mass_mask
from dino_tower.errors import ConfigError


def components(mask: Tensor) -> Tensor:
    """Number the connected parts of a mask [h, w] from 1, neighbours up, down, left, right; 0 where it is false."""
    _, labels = cv2.connectedComponents(mask.cpu().numpy().astype(np.uint8), connectivity=4)
    return torch.from_numpy(labels).to(torch.int64)


def component_at(mask: Tensor, seed: int) -> Tensor:
    """The connected part of a mask [h, w] that holds patch `seed` (row-major); nothing if the mask is false there."""
    labels = components(mask)
    own = labels.reshape(-1)[seed]
    return (labels == own) & (own > 0)


def largest_component(mask: Tensor) -> Tensor:
    """The connected part with most patches (the first of equals): [h, w] -> [h, w].

    LOST's code for the DINO baseline counts all parts but the last, so that it misses the object where that is it.
    """
    labels = components(mask)
    sizes = torch.bincount(labels.reshape(-1))
    sizes[0] = 0
    return labels == sizes.argmax() if int(sizes.max()) else torch.zeros_like(labels, dtype=torch.bool)


def box_around(mask: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """The pixels' box [4] int64 around the true patches of a mask [h, w], cut off at the image's (height, width).

    The grid may reach beyond the image (padded to a multiple of the patch). An empty mask gives the whole image.
    """
    if not mask.any():
        return torch.tensor([0, 0, size[1], size[0]])
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).cpu() * patch
    return torch.minimum(box, torch.tensor([size[1], size[0], size[1], size[0]]))


def attention_boxes(attention: Tensor, patch: int, size: tuple[int, int], keep: float = 0.6) -> Tensor:
    """DINO's own baseline, [heads, h, w] -> [heads, 4]: each head's largest part of the mask with 60 % of the mass."""
    return torch.stack([box_around(largest_component(mask), patch, size) for mask in mass_mask(attention, keep)])


def box_iou(box: Tensor, truth: Tensor) -> Tensor:
    """Overlap of one box [4] with the true ones [T, 4] -> [T], areas as (x1 - x0)(y1 - y0)."""
    one, many = box.double(), truth.double().reshape(-1, 4)
    low, high = torch.maximum(one[:2], many[:, :2]), torch.minimum(one[2:], many[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    either = (one[2:] - one[:2]).prod() + (many[:, 2:] - many[:, :2]).prod(1) - both
    return both / either


def corloc(boxes: Sequence[Tensor], truths: Sequence[Tensor], threshold: float = 0.5) -> np.ndarray:
    """Hit or miss of each image [B]: does the one predicted box overlap any true box by `threshold` or more?

    NaN for an image without true boxes: it says nothing. The mean is CorLoc (`stats.of_values`).
    """
    if len(boxes) != len(truths):
        raise ConfigError(f"CorLoc: {len(boxes)} boxes for {len(truths)} images; one box an image")
    return np.array([float((box_iou(box, truth) >= threshold).any()) if len(truth) else np.nan
                     for box, truth in zip(boxes, truths, strict=True)])  # fmt: skip
