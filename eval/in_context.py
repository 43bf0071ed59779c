"""In-context segmentation (Hummingbird): no training, each patch copies the labels of its nearest training patches.

Legend: B images, h x w patch grid, H x W label pixels, D features, C classes, N memory rows, M queries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.miou import VOID

SIMILARITIES_AT_A_TIME = 2**24


class Memory(NamedTuple):
    """Unit-length patch features [N, D] and the share of each class in each patch [N, C]."""

    features: Tensor
    labels: Tensor


def patch_labels(target: Tensor, grid: tuple[int, int], classes: int, void: int | None = VOID) -> Tensor:
    """Share of each class among the labelled pixels of a patch: target [B, H, W] -> [B, h, w, C], rows sum to 1.

    A patch without a labelled pixel is all 0. Void pixels take no part: the published code calls them class 0.
    Raises ConfigError where H, W are no multiple of the grid (resize the label, nearest) or ids are out of range.
    """
    (h, w), (height, width) = grid, target.shape[-2:]
    if target.ndim != 3 or height % h or width % w:
        raise ConfigError(f"patch labels: {tuple(target.shape)} on a grid {h} x {w}; need [B, H, W], multiples of it")
    ids = target.to(torch.int64)
    counted = torch.ones_like(ids, dtype=torch.bool) if void is None else ids != void
    if counted.any() and not 0 <= int(ids[counted].min()) <= int(ids[counted].max()) < classes:
        raise ConfigError(f"patch labels: ids up to {int(ids[counted].max())}; need 0 to {classes - 1} or {void}")
    rows = torch.arange(h, device=ids.device).repeat_interleave(height // h)[:, None]
    columns = torch.arange(w, device=ids.device).repeat_interleave(width // w)
    image = torch.arange(len(ids), device=ids.device)[:, None, None]
    cell = ((image * h + rows) * w + columns) * classes + ids
    counts = torch.bincount(cell[counted], minlength=len(ids) * h * w * classes).reshape(len(ids), h, w, classes)
    return counts.float() / counts.sum(-1, keepdim=True).clamp(min=1)


def build_memory(
    features: Tensor, labels: Tensor, size: int | None = None, generator: torch.Generator | None = None
) -> Memory:
    """Patches [B, h, w, D] with soft labels [B, h, w, C] -> memory; patches without a labelled pixel are left out.

    size: rows to keep, the same number from every image, those with rare classes first (`balanced_sample`).
    """
    if features.shape[:3] != labels.shape[:3]:
        raise ConfigError(f"memory: features {tuple(features.shape)}, labels {tuple(labels.shape)}; need one grid")
    each = None if size is None else size // len(features)
    return memory_of(zip(features, labels, strict=True), each, generator)


def memory_of(
    pictures: Iterable[tuple[Tensor, Tensor]], per_image: int | None = None, generator: torch.Generator | None = None
) -> Memory:
    """The same of pictures that come one by one, patches [h, w, D] and labels [h, w, C]: of each only the rows that
    are kept stay in memory. per_image: how many (`balanced_sample`), or all. Raises ConfigError where no patch of any
    picture has a labelled pixel."""
    rows, shares = [], []
    for patches, labels in pictures:
        kept = labels.flatten(0, 1).sum(1) > 0
        if per_image is not None:
            chosen = balanced_sample(labels[None], per_image, generator)[0]
            kept = chosen[kept[chosen]]
        rows.append(patches.flatten(0, 1)[kept].float())
        shares.append(labels.flatten(0, 1)[kept].float())
    if not sum(map(len, rows)):
        raise ConfigError("memory: no patch has a labelled pixel")
    return Memory(F.normalize(torch.cat(rows), dim=1), torch.cat(shares))


def balanced_sample(labels: Tensor, per_image: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices of patches [B, per_image] (open-hummingbird `sample_features`).

        frequency of a class = patches of the image that hold it;  score of a patch = sum over its classes
        keep the patches of smallest score * U(0, 1)

    Patches with common classes score high, so that small things are not lost. Unlabelled patches come last.
    """
    holds = labels.flatten(1, 2) > 0  # [B, h w, C]
    if not 1 <= per_image <= holds.shape[1]:
        raise ConfigError(f"memory: {per_image} patches an image of {holds.shape[1]}; choose another memory size")
    frequency = holds.sum(1, keepdim=True).float()
    weight = (holds * frequency).sum(-1)
    chosen = []
    for own, labelled in zip(weight, holds.any(-1), strict=True):
        scores = torch.full_like(own, 1e6)
        scores[labelled] = own[labelled] * torch.rand(int(labelled.sum()), generator=generator).to(own.device)
        chosen.append(scores.topk(per_image, largest=False).indices)
    return torch.stack(chosen)


def in_context(memory: Memory, queries: Tensor, k: int = 30, temperature: float = 0.02) -> Tensor:
    """Soft labels of query patches [..., D] -> [..., C]: a softmax over the k nearest rows of the memory.

        label = sum_n softmax_n(cosine(query, row_n) / temperature) label_n

    A memory smaller than k is used whole.
    """
    if k < 1 or temperature <= 0 or queries.shape[-1] != memory.features.shape[1]:
        raise ConfigError(
            f"in-context: k {k}, temperature {temperature}, queries of width {queries.shape[-1]} for a memory of width "
            f"{memory.features.shape[1]}; need k of 1 or more, a temperature above 0 and one width"
        )
    rows = F.normalize(queries.reshape(-1, queries.shape[-1]).float(), dim=1).to(memory.features.device)
    found = []
    for part in rows.split(max(1, SIMILARITIES_AT_A_TIME // len(memory.features))):
        similarity, index = (part @ memory.features.T).topk(min(k, len(memory.features)), dim=1)
        weight = (similarity / temperature).softmax(1)
        found.append(torch.einsum("mk,mkc->mc", weight, memory.labels[index]))
    return torch.cat(found).reshape(*queries.shape[:-1], -1)


def full_size(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Class of each pixel: scores on the grid [B, h, w, C], scaled up bilinearly to (H, W), argmax -> [B, H, W]."""
    return F.interpolate(scores.permute(0, 3, 1, 2).float(), size=size, mode="bilinear").argmax(1)
