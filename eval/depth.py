"""Depth from frozen features: bins, training losses and the scores of NYUv2.

Legend: B images, K bins, H x W pixels; depths in metres, 0 where the sensor saw nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError

LOW, HIGH = 1e-3, 10.0  # NYUv2
EIGEN_CROP = (slice(45, 471), slice(41, 601))  # rows and columns of a 480 x 640 picture that are scored
METRICS = ("a1", "a2", "a3", "abs_rel", "rmse", "log_10", "rmse_log", "silog", "sq_rel", "mae")


def depth_from_bins(logits: Tensor, low: float = LOW, high: float = HIGH) -> Tensor:
    """Logits [B, K, H, W] -> depth [B, 1, H, W] (AdaBins with uniform bins, as DINOv2 and DINOv3 use it).

    p = (relu(logits) + 0.1) / sum over bins;  depth = sum_k p_k bin_k,  bins = linspace(low, high, K)
    """
    bins = torch.linspace(low, high, logits.shape[1], device=logits.device, dtype=logits.dtype)
    share = logits.relu() + 0.1
    share = share / share.sum(1, keepdim=True)
    return torch.einsum("bkhw,k->bhw", share, bins)[:, None]


def sig_loss(prediction: Tensor, truth: Tensor, unbiased: bool = True) -> Tensor:
    """Scale-invariant log loss (Eigen 2014, AdaBins) over the pixels with truth > 0, all images together.

        g = log(prediction + 0.001) - log(truth + 0.001);  loss = sqrt(var g + 0.15 mean(g)^2)

    unbiased: the variance divides by N - 1 (DINOv3), otherwise by N (probe3d).
    """
    seen = truth > 0
    if int(seen.sum()) < 2:
        raise ConfigError("depth loss: fewer than two pixels with a true depth")
    g = (prediction[seen] + 1e-3).log() - (truth[seen] + 1e-3).log()
    return (g.var(correction=int(unbiased)) + 0.15 * g.mean().square()).sqrt()


def gradient_loss(prediction: Tensor, truth: Tensor) -> Tensor:
    """Differences of the log error between pixels two apart, at 4 scales (MegaDepth, DINOv2 `GradientLoss`).

    prediction, truth [..., H, W]. DINOv2 adds 0.5 of it to `sig_loss`. Scales: every pixel, every 2nd, 4th and
    6th.
    """
    error = ((prediction + 1e-3).log() - (truth + 1e-3).log()) * (truth > 0)
    seen = truth > 0
    total = prediction.new_zeros(())
    for step in (1, 2, 4, 6):
        part, valid = error[..., ::step, ::step], seen[..., ::step, ::step]
        down = (part[..., :-2, :] - part[..., 2:, :]).abs() * (valid[..., :-2, :] & valid[..., 2:, :])
        across = (part[..., :-2] - part[..., 2:]).abs() * (valid[..., :-2] & valid[..., 2:])
        total = total + (down.sum() + across.sum()) / valid.sum().clamp(min=1)
    return total


def depth_metrics(
    prediction: Tensor, truth: Tensor, low: float = LOW, high: float = HIGH, eigen_crop: bool = False
) -> dict[str, Tensor]:
    """Scores of each image {name: [B]}: prediction and truth [B, 1, H, W] or [B, H, W], at the label's full size.

    a1..a3: share of pixels with max(p/t, t/p) < 1.25^1..3; abs_rel, sq_rel: |p - t| / t, (p - t)^2 / t; rmse, mae in
    metres; log_10, rmse_log; silog: 100 * deviation of the log error. Predictions are clamped to low..high first;
    pixels count where low < truth <= high. eigen_crop: NYUv2's 480 x 640 pictures lose their border.
    NaN for an image without such a pixel.
    """
    found, true = (x.double().reshape(-1, *x.shape[-2:]) for x in (prediction, truth))
    if found.shape != true.shape:
        raise ConfigError(f"depth: prediction {tuple(prediction.shape)}, truth {tuple(truth.shape)}; need one size")
    if eigen_crop:
        if true.shape[1:] != (480, 640):
            raise ConfigError(f"depth: the Eigen crop is for 480 x 640 pictures, not {true.shape[1]} x {true.shape[2]}")
        found, true = found[:, *EIGEN_CROP], true[:, *EIGEN_CROP]
    found = found.clamp(low, high)
    seen = (true > low) & (true <= high)
    true = torch.where(seen, true, 1.0)
    count = seen.sum((1, 2)).double()

    def mean(values: Tensor) -> Tensor:
        return (values * seen).sum((1, 2)) / count

    ratio = torch.maximum(found / true, true / found)
    error, log_error = (found - true).abs(), (true / found).log()
    scores = {f"a{i}": mean((ratio < 1.25**i).double()) for i in (1, 2, 3)}
    scores |= {
        "abs_rel": mean(error / true),
        "rmse": mean(error**2).sqrt(),
        "log_10": mean(log_error.abs()) / math.log(10),
    }
    squared = mean(log_error**2)
    scores |= {"rmse_log": squared.sqrt(), "silog": 100 * (squared - mean(log_error) ** 2).clamp(min=0).sqrt()}
    return scores | {"sq_rel": mean(error**2 / true), "mae": mean(error)}


def aligned(prediction: Tensor, truth: Tensor) -> Tensor:
    """Prediction with the scale and shift that fit each image's truth best in least squares: [B, 1, H, W] -> the same.

    For towers or heads that know depth only up to an affine map. Where the fit is undetermined nothing changes.
    """
    found, true = (x.double().reshape(len(x), -1) for x in (prediction, truth))
    seen = (true > 0).double()
    count, p, t = seen.sum(1), (seen * found).sum(1), (seen * true).sum(1)
    pp, pt = (seen * found**2).sum(1), (seen * found * true).sum(1)
    determinant = pp * count - p**2
    solved = determinant.abs() > 1e-12 * (pp * count).clamp(min=1e-12)
    safe = torch.where(solved, determinant, 1.0)
    scale = torch.where(solved, (count * pt - p * t) / safe, 1.0)
    shift = torch.where(solved, (pp * t - p * pt) / safe, 0.0)
    return (found * scale[:, None] + shift[:, None]).reshape(prediction.shape)


def bilinear(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth [B, 1, h, w] scaled up to the label's (H, W); DINOv2 aligns no corners."""
    return F.interpolate(depth, size=size, mode="bilinear")
