"""Image descriptors for retrieval and copy detection: GeM pooling, PCA whitening, several scales.

Legend: B images, h x w patch grid, D features, N images the whitening is fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError

SCALES = (1.0, 2**-0.5, 0.5)


class Whitening(NamedTuple):
    """x -> matrix (x - mean): mean [D], matrix [K, D]."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, descriptors: Tensor) -> Tensor:
        """Whitened and of unit length: [B, D] -> [B, K]."""
        return F.normalize((descriptors.double() - self.mean) @ self.matrix.T, dim=1).float()


def gem(patches: Tensor, power: float = 4.0, smallest: float = 1e-6) -> Tensor:
    """Generalised mean over patches: [B, h, w, D] -> [B, D]: mean(max(x, 1e-6)^4)^(1/4), DINO's for Copydays."""
    return patches.clamp(min=smallest).pow(power).mean((1, 2)).pow(1 / power)


def copy_descriptor(cls: Tensor, patches: Tensor) -> Tensor:
    """CLS and the generalised mean of the patches, one after the other: [B, D], [B, h, w, D] -> [B, 2 D]."""
    return torch.cat([cls, gem(patches)], dim=1)


def fit_whitening(
    descriptors: Tensor, power: float = 0.5, components: int | None = None, centre_covariance: bool = True
) -> Whitening:
    """PCA with eigenvalues to the power -`power` (0.5: unit variance), fitted on [N, D] descriptors of other images.

        C = (X - mean)^T (X - mean) / N = V diag(d) V^T;  matrix = diag(d^-power) V^T, d >= 1e-5 max d, largest first

    centre_covariance=False: C = X^T X / N, as DINO's code has it while it centres the data; the largest direction is
    then the mean's, and what is whitened is not white.
    """
    if descriptors.ndim != 2 or len(descriptors) < 2:
        raise ConfigError(f"whitening: descriptors {tuple(descriptors.shape)}; need [N, D] of two images or more")
    rows = descriptors.float()
    mean = rows.mean(0)
    centred = rows - mean if centre_covariance else rows
    # The covariance in float32, as published: whitening divides by small eigenvalues, so its rounding shows at 1e-5.
    values, vectors = torch.linalg.eigh((centred.T @ centred / len(rows)).double())
    values = values.clamp(min=float(values.max()) * 1e-5).flip(0)[:components]
    return Whitening(mean, values.pow(-power)[:, None] * vectors.flip(1).T[: len(values)])


def multi_scale(
    describe: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[float] = SCALES, multiple: int | None = None
) -> Tensor:
    """Mean over scales of what `describe` says of [B, 3, H, W], of unit length for each image -> [B, D].

    multiple: sides are rounded to a multiple of the patch. The published code divides by the length of the whole
    batch, so that a descriptor's length depends on its neighbours.
    """
    total: Tensor | None = None
    for scale in scales:
        if multiple is None:
            resized = images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bilinear")
        else:
            size = [max(1, round(side * scale / multiple)) * multiple for side in images.shape[-2:]]
            resized = F.interpolate(images, size=size, mode="bilinear")
        found = describe(resized)
        total = found if total is None else total + found
    if total is None:
        raise ConfigError("multi-scale: no scales")
    return F.normalize(total / len(scales), dim=1)
