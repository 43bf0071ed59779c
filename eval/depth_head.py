"""A linear depth head on frozen features: patch + CLS -> bins, trained with the scale-invariant loss.

Legend: B images, h x w patch grid, D features, K bins, H x W label pixels, L learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.depth import HIGH, LOW, bilinear, depth_from_bins, depth_metrics, gradient_loss, sig_loss
from dino_tower.eval.linear_probe import Standard, standardise
from dino_tower.eval.logistic import Linear

BINS = 256
LEARNING_RATES = (1e-3, 1e-2)
START = 0.4  # of the biases: four times what an empty bin weighs


class DepthHead(NamedTuple):
    """depth = bins of bilinear(x 4) of classifier(standard(features)); `validation`: RMSE of each rate on the slice."""

    classifier: Linear
    standard: Standard
    low: float
    high: float
    learning_rate: float
    validation: dict[float, float]

    def predict(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Depth in metres [B, 1, H, W] from `depth_input` [B, h, w, D]."""
        return _depth(self.standard(features), *self.classifier, self.low, self.high, size)


def depth_input(patches: Tensor, cls: Tensor | None = None) -> Tensor:
    """What the head sees: each normed patch with the CLS token behind it, [B, h, w, D], [B, E] -> [B, h, w, D + E]."""
    if cls is None:
        return patches
    return torch.cat([patches, cls[:, None, None].expand(*patches.shape[:3], -1)], dim=-1)


def fit_depth(
    features: Tensor,
    truth: Tensor,
    low: float = LOW,
    high: float = HIGH,
    bins: int = BINS,
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = 500,
    batch: int = 8,
    share: float = 0.1,
    seed: int = 0,
) -> DepthHead:
    """Train on features [B, h, w, D] (`depth_input`) and depth [B, 1, H, W]; pixels outside low..high do not count.

        loss = SigLoss + 0.5 gradient loss, at the label's full size;  AdamW, cosine to 0

    The learning rate is chosen by RMSE on `share` of these images, then the head is trained on all of them.
    Raises ConfigError for fewer than two images.
    """
    if len(features) < 2 or len(features) != len(truth):
        raise ConfigError(f"depth head: {len(features)} images and {len(truth)} depth maps; need two or more")
    seen = torch.where((truth > low) & (truth <= high), truth, 0.0)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(share * len(features)))
    validation, fit = order[:held], order[held:]
    size = (truth.shape[-2], truth.shape[-1])
    tried: dict[float, float] = {}
    for rate in learning_rates if len(learning_rates) > 1 else ():
        head = _train(features[fit], seen[fit], low, high, bins, rate, steps, batch, seed)
        found = head.predict(features[validation], size)
        tried[rate] = float(depth_metrics(found, truth[validation], low, high)["rmse"].nanmean())
    best = min(tried, key=lambda rate: (tried[rate] != tried[rate], tried[rate])) if tried else learning_rates[0]
    return _train(features, seen, low, high, bins, best, steps, batch, seed)._replace(validation=tried)


def _train(
    features: Tensor, truth: Tensor, low: float, high: float, bins: int, rate: float, steps: int, batch: int, seed: int
) -> DepthHead:
    rng = torch.Generator().manual_seed(seed)
    standard = standardise(features.flatten(0, 2))
    rows = standard(features)
    weight = (0.01 * torch.randn(bins, rows.shape[-1], generator=rng)).to(rows).requires_grad_()
    bias = _start(truth, low, high, bins).to(rows).requires_grad_()
    optimiser = torch.optim.AdamW([weight, bias], lr=rate, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    size = (truth.shape[-2], truth.shape[-1])
    with torch.enable_grad():
        for _ in range(steps):
            chosen = torch.randint(len(rows), (min(batch, len(rows)),), generator=rng)
            target = truth[chosen]
            if int((target > 0).sum()) > 1:
                found = _depth(rows[chosen], weight, bias, low, high, size)
                loss = sig_loss(found, target) + 0.5 * gradient_loss(found, target)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            cosine.step()
    return DepthHead(Linear(weight.detach(), bias.detach()), standard, low, high, rate, {})


def _start(truth: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Biases [K] with which the head begins near the depths that training shows, not at the middle of all bins:
    features have mean 0, so that only biases can bring it there, and they are slow."""
    place = ((truth[truth > 0] - low) / (high - low) * (bins - 1)).round().long()
    return START * bins * torch.bincount(place, minlength=bins) / max(1, len(place))


def _depth(rows: Tensor, weight: Tensor, bias: Tensor, low: float, high: float, size: tuple[int, int]) -> Tensor:
    """DINOv2 scales the features up by 4 before its 1 x 1 convolution; both are linear, so the logits are enough."""
    logits = F.linear(rows.float(), weight, bias).permute(0, 3, 1, 2)
    return bilinear(depth_from_bins(F.interpolate(logits, scale_factor=4, mode="bilinear"), low, high), size)
