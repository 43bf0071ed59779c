"""Video object segmentation without training: the first frame's masks travel along the nearest patches.

Legend: T context frames, h x w patch grid, D features, C objects (background first), r radius in patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError, unknown

NEIGHBOURHOODS = ("square", "circle")
TILE = 8  # queries are taken in tiles of 8 x 8 patches that share one window of keys


def propagate(
    features: Tensor,
    context: Tensor,
    labels: Tensor,
    radius: int | None = 12,
    k: int = 5,
    temperature: float = 0.1,
    neighbourhood: str = "square",
) -> Tensor:
    """Labels of a frame from those of the context frames (DINO `label_propagation`; DINOv3's notebook `propagate`).

        weight = exp(cosine / temperature) for keys within the radius; keep the k largest over all frames together and
        whatever equals the k-th; label = weighted mean

    features [h, w, D], context [T, h, w, D], labels [T, C, h, w] -> [C, h, w]. Any scale of features.
    radius in patches: |dy|, |dx| <= r ("square") or dy^2 + dx^2 <= r^2 ("circle"); None: the whole frame.
    The published code multiplies all patches of all frames and then masks; here only the window of a tile is.
    Raises ConfigError for shapes that do not fit.
    """
    if neighbourhood not in NEIGHBOURHOODS:
        raise unknown("neighbourhood", neighbourhood, NEIGHBOURHOODS)
    h, w = features.shape[:2]
    if context.shape[1:] != features.shape or labels.shape[0] != len(context) or labels.shape[2:] != (h, w):
        raise ConfigError(
            f"label propagation: frame {tuple(features.shape)}, context {tuple(context.shape)}, labels "
            f"{tuple(labels.shape)}; need [h, w, D], [T, h, w, D], [T, C, h, w]"
        )
    frame, keys = F.normalize(features.float(), dim=-1), F.normalize(context.float(), dim=-1)
    # Columns before rows: the window of every tile of a band is then one block of memory in each frame.
    keys, shares = keys.transpose(1, 2), labels.float().permute(0, 3, 2, 1)
    found = shares.new_empty(h, w, labels.shape[1])
    reach = max(h, w) if radius is None else radius
    for top in range(0, h, TILE):
        bottom, rows = min(top + TILE, h), slice(max(0, top - reach), top + TILE + reach)
        near, known = keys[:, :, rows].contiguous(), shares[:, :, rows].contiguous()
        for left in range(0, w, TILE):
            right, columns = min(left + TILE, w), slice(max(0, left - reach), left + TILE + reach)
            queries, window = frame[top:bottom, left:right].flatten(0, 1), near[:, columns]
            likeness = queries.expand(len(keys), -1, -1) @ window.flatten(1, 2).transpose(1, 2)
            far = None
            if radius is not None:
                far = _far((top, bottom, left, right), (rows.start, columns.start), window.shape[1:3], radius,
                           neighbourhood, likeness.device)  # fmt: skip
            pooled = _weighted(likeness, far, known[:, columns].flatten(1, 2), k, temperature)
            found[top:bottom, left:right] = pooled.reshape(bottom - top, right - left, -1)
    return found.permute(2, 0, 1)


def _far(
    tile: tuple[int, int, int, int], corner: tuple[int, int], window: tuple[int, ...], radius: int, shape: str,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """[queries, places] of a tile: which places of the window [columns, rows] lie beyond the radius."""
    top, bottom, left, right = tile
    dy = torch.arange(top, bottom, device=device)[:, None] - torch.arange(window[1], device=device) - corner[0]
    dx = torch.arange(left, right, device=device)[:, None] - torch.arange(window[0], device=device) - corner[1]
    dy, dx = dy[:, None, None], dx[None, :, :, None]
    far = (dy.abs() > radius) | (dx.abs() > radius) if shape == "square" else dy**2 + dx**2 > radius**2
    return far.flatten(2).flatten(0, 1)


def _weighted(likeness: Tensor, far: Tensor | None, shares: Tensor, k: int, temperature: float) -> Tensor:
    """[T, Q, P] similarities to places and their labels [T, P, C] -> [Q, C], by the k nearest of all frames and those
    that tie with the last of them. far [Q, P]: places that do not count.

    The k + 1 largest lie in the k + 1 places whose best frame is largest: only one value a place has to be sorted.
    """
    frames, places = len(likeness), likeness.shape[2]
    best = likeness.amax(0) if far is None else likeness.amax(0).masked_fill_(far, -torch.inf)
    top = best.topk(min(k + 1, places), dim=1)
    inner = likeness.gather(2, top.indices.expand(frames, -1, -1))
    inner = inner.masked_fill_(top.values == -torch.inf, -torch.inf)
    number = top.indices + places * torch.arange(frames, device=likeness.device)[:, None, None]
    inner, number = inner.transpose(0, 1).flatten(1), number.transpose(0, 1).flatten(1)
    largest = inner.topk(min(k + 1, inner.shape[1]), dim=1)
    values, index = largest.values[:, :k], number.gather(1, largest.indices[:, :k])
    weight = ((values - values[:, :1]) / temperature).exp()
    pooled = torch.einsum("qk,qkc->qc", weight / weight.sum(1, keepdim=True), shares.flatten(0, 1)[index])
    if largest.values.shape[1] > k:
        last = values[:, -1]
        tied = ((largest.values[:, k] == last) & (last > -torch.inf)).nonzero()[:, 0]
        if len(tied):  # equal patches, as in a still scene
            rows = likeness[:, tied] if far is None else likeness[:, tied].masked_fill_(far[tied], -torch.inf)
            rows = rows.transpose(0, 1).flatten(1)
            weight = ((rows - values[tied, :1]) / temperature).exp().where(rows >= last[tied, None], 0.0)
            pooled[tied] = weight / weight.sum(1, keepdim=True) @ shares.flatten(0, 1)
    return pooled


def propagate_video(
    frames: Iterable[Tensor],
    first_labels: Tensor,
    previous: int = 7,
    radius: int | None = 12,
    k: int = 5,
    temperature: float = 0.1,
) -> Iterator[Tensor]:
    """Soft labels [C, h, w] of every frame after the first: context = the first frame and the `previous` last ones.

    frames: features [h, w, D] one by one (only the context is kept); first_labels [C, h, w], one-hot.
    """
    stored: list[tuple[Tensor, Tensor]] = []
    for features in frames:
        if not stored:
            stored.append((features, first_labels.float()))
            continue
        context, labels = zip(*stored, strict=True)
        found = propagate(features, torch.stack(context), torch.stack(labels), radius, k, temperature)
        if len(stored) > previous:
            del stored[1]
        stored.append((features, found))
        yield found


def first_labels(mask: Tensor, grid: tuple[int, int], objects: int) -> Tensor:
    """The given mask of the first frame [H, W] (0: background) on the patch grid, one-hot [objects + 1, h, w].

    The pixel in the middle of each patch decides, as DINO's nearest resize does.
    """
    small = F.interpolate(mask[None, None].float(), size=grid, mode="nearest-exact")[0, 0].long()
    if not 0 <= int(small.min()) <= int(small.max()) <= objects:
        raise ConfigError(f"video: mask ids {int(small.min())} to {int(small.max())}; need 0 to {objects}")
    return F.one_hot(small, objects + 1).permute(2, 0, 1).float()


def masks(labels: Tensor, size: tuple[int, int], stretch: bool = True) -> Tensor:
    """Object of each pixel: soft labels [C, h, w] scaled up bilinearly to (H, W), argmax -> [H, W].

    stretch: each channel to 0..1 first (DINO `norm_mask`), so that a small object that faded is not swallowed.
    """
    large = full_labels(labels, size) if stretch else _upsampled(labels, size)
    best, found = large[0], torch.zeros(size, dtype=torch.int64, device=large.device)
    for number in range(1, len(large)):  # argmax over few channels, several times as fast; the first of equals wins
        found.masked_fill_(large[number] > best, number)
        best = torch.maximum(best, large[number])
    return found


def full_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Soft labels [C, h, w] at (H, W), each channel stretched from its smallest value to its largest -> [C, H, W]."""
    large = _upsampled(labels, size)
    low, high = (one[:, None, None] for one in large.flatten(1).aminmax(dim=1))
    span = torch.where((high > 0) & (high > low), high - low, 1.0)
    return large.sub_(torch.where(high > 0, low, 0.0)).div_(span)


def _upsampled(labels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(labels[None].float(), size=size, mode="bilinear")[0]
