"""Large pictures through a tower of fixed size: overlapping windows whose scores are averaged."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dino_tower.errors import ConfigError


def windows(height: int, width: int, crop: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of the windows that cover a picture (mmseg `slide_inference`).

    Every `stride` pixels; a window that would leave the picture is moved back inside, so the last overlap is larger.
    A side shorter than the crop is covered by one window of its own length.
    """
    if crop < 1 or not 1 <= stride <= crop:
        raise ConfigError(f"sliding window: crop {crop}, stride {stride}; the stride must be 1 to the crop")
    found = []
    for top in _starts(height, crop, stride):
        for left in _starts(width, crop, stride):
            found.append((top, min(top + crop, height), left, min(left + crop, width)))
    return found


def _starts(side: int, crop: int, stride: int) -> list[int]:
    count = (max(side - crop, 0) + stride - 1) // stride + 1
    return [max(0, min(i * stride, side - crop)) for i in range(count)]


def slide(score: Callable[[Tensor], Tensor], images: Tensor, crop: int = 512, stride: int = 341) -> Tensor:
    """Scores [B, C, H, W] of pictures [B, 3, H, W]: `score` of each window [B, 3, y, x] -> [B, C, y, x], averaged.

    `score` gives its answer at the window's own size (scale up first). Linear segmentation: crop 512, stride 341.
    """
    height, width = images.shape[-2:]
    total: Tensor | None = None
    times = images.new_zeros(height, width)
    for top, bottom, left, right in windows(height, width, crop, stride):
        found = score(images[..., top:bottom, left:right])
        if found.shape[-2:] != (bottom - top, right - left):
            raise ConfigError(f"sliding window: scores {tuple(found.shape)}, window {bottom - top} x {right - left}")
        if total is None:
            total = found.new_zeros(len(images), found.shape[1], height, width)
        total[..., top:bottom, left:right] += found
        times[top:bottom, left:right] += 1
    assert total is not None
    return total / times
