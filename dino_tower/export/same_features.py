"""Is what was written the tower that was meant? Its features on the same pictures, at the native and two other sizes.

Legend: B pictures, h x w the patch grid, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.scenes import make_scene
from dino_tower.tokens import Tokens
from dino_tower.tower import Tower

Forward = Callable[[Tensor], Tokens]  # normalised pixels [B, 3, H, W], H and W multiples of the patch

OTHER_GRIDS = ((8, 6), (11, 11))  # patches: a smaller or larger picture, and one that is not square


@dataclass(frozen=True)
class Gap:
    """Largest absolute difference between two towers' tokens at one size, and the largest feature there."""

    height: int
    width: int
    native: bool
    difference: float
    largest: float

    def __str__(self) -> str:
        return f"{self.difference:.1e} at {self.height} x {self.width}, of features up to {self.largest:.3g}"


def forward_of(tower: Tower) -> Forward:
    """A loaded tower as a function of pixels."""

    def forward(pixels: Tensor) -> Tokens:
        out = tower(pixels)
        assert isinstance(out, Tokens)  # a tensor has one grid
        return out

    return forward


def native_size(model: Any, processor: Any, patch: int) -> tuple[int, int]:
    """Pixels of the position table, where nothing is interpolated, or of the processor's crop where there is none."""
    size = getattr(model.config, "image_size", None)
    if isinstance(size, int) and getattr(model.config, "model_type", "") != "resnet":
        return (size, size)
    crop = getattr(processor, "crop_size", None) or {"height": 224, "width": 224}
    return tuple(max(1, round(crop[side] / patch)) * patch for side in ("height", "width"))  # type: ignore[return-value]


def picture_pixels(processor: Any, size: tuple[int, int]) -> Tensor:
    """Two pictures with objects, texture and edges, as normalised pixels [2, 3, H, W]."""
    pictures = [Image.fromarray(make_scene("medium", index, "val").image) for index in range(2)]
    resized = [picture.resize((size[1], size[0]), Image.Resampling.BICUBIC) for picture in pictures]
    pixels: Tensor = processor(resized, return_tensors="pt", do_resize=False, do_center_crop=False).pixel_values
    return pixels


@torch.no_grad()
def compare(
    meant: Forward,
    written: Forward,
    processor: Any,
    native: tuple[int, int],
    patch: int,
    only_native: bool = False,
) -> list[Gap]:
    """The gaps at the native size (first) and, unless only_native, two others.

    A written feature that is no number makes the gap infinite. Raises ConfigError for tokens of other shapes, and for a
    tower whose own features are no numbers.
    """
    sizes = [native, *((h * patch, w * patch) for h, w in OTHER_GRIDS if not only_native)]
    gaps = []
    for size in sizes:
        pixels = picture_pixels(processor, size)
        difference, largest = 0.0, 0.0
        for a, b in zip(meant(pixels), written(pixels), strict=True):
            if a is None and b is None:
                continue
            if a is None or b is None or a.shape != b.shape:
                shapes = tuple(None if t is None else tuple(t.shape) for t in (a, b))
                raise ConfigError(f"the tokens have another shape: {shapes[0]} were meant, {shapes[1]} came")
            if not bool(a.isfinite().all()):
                raise ConfigError(f"the tower itself gives features that are no numbers, at {size[0]} x {size[1]}")
            gap = float((a.float() - b.float()).abs().max())
            difference = max(difference, gap if gap == gap else float("inf"))
            largest = max(largest, float(a.abs().max()))
        gaps.append(Gap(*size, size == native, difference, largest))
    return gaps


def refuse_if_different(gaps: list[Gap], tolerance: float, other_sizes: bool) -> float:
    """The largest gap that had to be small; ConfigError where it is not.

    tolerance: relative to the largest feature, since features of a real tower reach 10 and more. other_sizes: whether
    the sizes that are not native must agree, too (two libraries that resize positions differently cannot).
    """
    counted = [gap for gap in gaps if gap.native or other_sizes]
    for gap in counted:
        if not gap.difference <= tolerance * max(1.0, gap.largest):
            raise ConfigError(f"what was written differs from the tower by {gap}; not kept")
    return max(gap.difference for gap in counted)
