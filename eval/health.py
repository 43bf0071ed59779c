"""Feature health: artefacts, positional content and rank of patch features, before any task is run on them.

Legend: B images, h x w patch grid, D features, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.linear_probe import standardise
from dino_tower.eval.linear_segmentation import fit_ridge


class Outliers(NamedTuple):
    """Patches with a norm far above the rest: the tower keeps something else than the picture there."""

    rate: float  # share of patches above the limit
    limit: float  # median + 6 MAD
    per_image: Tensor  # [B] share in each image, for intervals
    histogram: Tensor  # [bins] counts of norms
    edges: Tensor  # [bins + 1]


def outliers(patches: Tensor, deviations: float = 6.0, bins: int = 64) -> Outliers:
    """Norms of patches [B, h, w, D]: those above median + 6 * median absolute deviation (of the set) are artefacts.

    Call it for each layer: artefacts of large towers appear in the later ones.
    """
    norms = _grid(patches).double().norm(dim=-1)
    middle = norms.median()
    limit = middle + deviations * (norms - middle).abs().median()
    above = (norms > limit).double().flatten(1)
    high = max(float(norms.max()), 1e-12)
    edges = torch.linspace(0, high, bins + 1, dtype=torch.float64)
    return Outliers(float(above.mean()), float(limit), above.mean(1), torch.histc(norms.cpu(), bins, 0, high), edges)


def positional_r2(train: Tensor, test: Tensor, strength: float = 1e3) -> tuple[float, float]:
    """How well a linear map reads the patch's place from its features: R^2 of (y, x) on held-out images.

    train, test [B, h, w, D] of different images; ridge with penalty 1 / strength on standardised features. 0: no better
    than the middle of the grid; it can be below. Compare with the patch embedding's own value: a raw patch of sky also
    tells that it is up.
    """
    error, spread = (one.sum(0) for one in positional_errors(train, test, strength))
    y, x = (1 - error / spread.clamp(min=1e-12)).tolist()
    return y, x


def positional_errors(train: Tensor, test: Tensor, strength: float = 1e3) -> tuple[Tensor, Tensor]:
    """What each test image adds to `positional_r2`: (squared error, squared distance from the middle), [B, 2] each."""
    seen, held = _grid(train), _grid(test)
    standard = standardise(seen.flatten(0, 2))
    head = fit_ridge(standard(seen.flatten(0, 2)), _places(seen), strength)
    truth = _places(held).double()
    error = (head(standard(held.flatten(0, 2))).double() - truth).square()
    spread = (truth - truth.mean(0)).square()
    return tuple(one.unflatten(0, (len(held), -1)).sum(1).cpu() for one in (error, spread))  # type: ignore[return-value]


def positional_variance(patches: Tensor) -> float:
    """Share of the features' variance explained by the mean map of the set, 0..1: [B, h, w, D], B >= 2 images.

        var over places of (mean over images) / var over places and images

    1: every picture gives the same map. Corrected for the noise of a mean over B images, so that features without
    place have 0 and not 1 / B.
    """
    rows = _grid(patches).double()
    count = len(rows)
    if count < 2:
        raise ConfigError(f"positional variance: {count} image; needs two or more")
    mean = rows.mean(0)
    total = (rows - rows.mean((0, 1, 2))).square().sum(-1).mean()
    within = (rows - mean).square().sum(-1).sum(0).mean() / (count - 1)
    between = (mean - mean.mean((0, 1))).square().sum(-1).mean()
    places = mean.shape[0] * mean.shape[1]
    explained = between - within / count * (places - 1) / places
    return float((explained / total.clamp(min=1e-12)).clamp(0, 1))


def rank_me(features: Tensor) -> float:
    """Effective rank of features [N, D] (RankMe, Garrido et al. 2023): exp of the entropy of the singular values.

        p_i = sigma_i / sum sigma + 1e-7;  exp(-sum p_i log p_i)

    Not centred, as published. Between 1 and min(N, D); N well above D, else it measures N.
    """
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def shift_consistency(patches: Tensor, shifted: Tensor, shift: tuple[int, int]) -> Tensor:
    """Mean cosine of the features of the same content, seen at two places of the grid -> [B].

    patches, shifted [B, h, w, D]: `shifted` shows the picture moved by (down, right) whole patches, so that its patch
    (y + down, x + right) holds what patch (y, x) held. 1: features do not depend on the place. What moved in or out of
    the picture is left out.
    """
    first, second = _grid(patches), _grid(shifted)
    (down, right), (h, w) = shift, first.shape[1:3]
    if first.shape != second.shape or abs(down) >= h or abs(right) >= w:
        raise ConfigError(f"shift: {tuple(first.shape)} and {tuple(second.shape)} moved by {shift}; nothing overlaps")
    here = first[:, max(0, -down) : h - max(0, down), max(0, -right) : w - max(0, right)]
    there = second[:, max(0, down) : h - max(0, -down), max(0, right) : w - max(0, -right)]
    return F.cosine_similarity(here.double(), there.double(), dim=-1).mean((1, 2))


def _grid(patches: Tensor) -> Tensor:
    if patches.ndim != 4:
        raise ConfigError(f"feature health: patches of shape {tuple(patches.shape)}; need [B, h, w, D]")
    return patches.float()


def _places(patches: Tensor) -> Tensor:
    """(y, x) of each patch, -1 to 1: [B h w, 2]."""
    y, x = (torch.linspace(-1, 1, side, device=patches.device) for side in patches.shape[1:3])
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
    return grid.expand(len(patches), -1, -1, -1).reshape(-1, 2)
