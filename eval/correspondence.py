"""Correspondence: which patch of a second picture is most like the one under a point of the first.

Legend: h x w patch grid, D features, K points (x, y) in pixels of what the tower saw, P pairs of pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.stats import Parts, of_ratio, of_values


class PairCounts(NamedTuple):
    """Of each pair of pictures [P]: points found, and points asked for."""

    correct: np.ndarray
    points: np.ndarray

    @property
    def per_point(self) -> Parts:
        """Every point counts the same: a pair with many points weighs more. For `stats`."""
        return of_ratio(self.correct, self.points)

    @property
    def per_image(self) -> Parts:
        """Every pair counts the same. The two differ by several points on SPair-71k: always say which."""
        return of_values(np.where(self.points > 0, self.correct / np.maximum(self.points, 1), np.nan))


def patch_of(points: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Row-major index of the patch under each point, [K, 2] -> [K]; points beyond the border go to the last patch."""
    column = (points[:, 0] / patch).floor().clamp(0, grid[1] - 1).long()
    row = (points[:, 1] / patch).floor().clamp(0, grid[0] - 1).long()
    return row * grid[1] + column


def patch_centres(grid: tuple[int, int], patch: int) -> Tensor:
    """(x, y) of the middle of each patch [h w, 2]; pixel centres have whole coordinates: half a pixel is taken off."""
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).float() * patch + (patch // 2 - 0.5)


def match_points(first: Tensor, second: Tensor, points: Tensor, patch: int) -> Tensor:
    """Where points [K, 2] of the first picture lie in the second: the centre of the patch of largest cosine -> [K, 2].

    first, second: features [h, w, D] (grids may differ).
    """
    if first.ndim != 3 or second.ndim != 3 or points.ndim != 2 or points.shape[1] != 2:
        raise ConfigError(
            f"correspondence: features {tuple(first.shape)}, {tuple(second.shape)}, points {tuple(points.shape)}; "
            "need [h, w, D] twice and [K, 2]"
        )
    asked = F.normalize(first.flatten(0, 1)[patch_of(points, (first.shape[0], first.shape[1]), patch)].float(), dim=1)
    nearest = (asked @ F.normalize(second.flatten(0, 1).float(), dim=1).T).argmax(1)
    return patch_centres((second.shape[0], second.shape[1]), patch).to(nearest.device)[nearest]


def correct_points(
    found: Tensor, truth: Tensor, size: float | Tensor, alpha: float = 0.1, inclusive: bool = False
) -> Tensor:
    """Which points [K] lie nearer to the truth than alpha * size (found, truth [K, 2]).

    size: max(height, width) of the object's box in the second picture, in the same pixels. inclusive: "not farther
    than", as HPF counts; sd-dino and we: nearer.
    """
    distance, limit = (found.double() - truth.double()).norm(dim=1), alpha * torch.as_tensor(size, dtype=torch.float64)
    return distance <= limit if inclusive else distance < limit


def letterbox_points(points: Tensor, size: tuple[int, int], target: int) -> tuple[Tensor, tuple[int, int], float]:
    """Points [K, 3] (x, y, visible) of an image (width, height) after it was scaled and padded to a square of `target`.

    Returns (points, (left, top) padding, scale); invisible points become 0 (sd-dino `preprocess_kps_pad`). Our own path
    resizes without padding; this is for numbers measured the published way.
    """
    width, height = size
    scale = target / max(width, height)
    left = (target - round(target * width / height)) // 2 if width < height else 0
    top = (target - round(target * height / width)) // 2 if height < width else 0
    moved = torch.cat([points[:, :2] * scale + points.new_tensor([left, top]), points[:, 2:3]], dim=1)
    return moved * points[:, 2:3], (left, top), scale


def heatmap_peaks(heat: Tensor) -> Tensor:
    """(x, y) of the largest value of each map [B, H, W] -> [B, 2] (probe3d `argmax_2d`)."""
    index = heat.flatten(1).argmax(1)
    return torch.stack([index % heat.shape[2], index // heat.shape[2]], dim=1)


def homography_errors(first: Tensor, second: Tensor, homography: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """Distance in pixels between where each patch of the first picture belongs and where its features find it -> [K].

    homography [3, 3] takes (x, y, 1) of the first to the second; size: (height, width) of the second, both as the tower
    saw them. Patches whose centre leaves the second picture are not asked for. With patches of p pixels the best
    possible answer is off by up to p / sqrt(2): thresholds below that measure the grid.
    """
    centres = patch_centres((first.shape[0], first.shape[1]), patch)
    moved = torch.cat([centres, torch.ones(len(centres), 1)], dim=1).double() @ homography.double().cpu().T
    truth = moved[:, :2] / moved[:, 2:]
    limit = torch.tensor([size[1] - 0.5, size[0] - 0.5], dtype=torch.float64)
    inside = ((truth >= -0.5) & (truth < limit)).all(1) & (moved[:, 2] > 0)
    found = match_points(first, second, centres[inside], patch)
    return (found.cpu().double() - truth[inside]).norm(dim=1)


def counted(hits: list[Tensor]) -> PairCounts:
    """The counts of a data set from the hits of each pair [K] (`correct_points`, or errors below a threshold)."""
    return PairCounts(np.array([int(h.sum()) for h in hits]), np.array([len(h) for h in hits]))
