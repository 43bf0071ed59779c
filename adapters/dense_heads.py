"""Heads on a tower: classes of a picture, classes or depth of its pixels.

Legend: B images, h x w patch grid, D features of a token, L layers, K outputs (classes, or bins of depth), C channels.
Dense heads take the tokens of L layers, each [B, h, w, D], and give scores [B, K, h', w'] that are scaled up
bilinearly to the size of the labels. Group norm in place of batch norm: batches are small, and nothing has to be agreed
between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dino_tower.tokens import Tokens

POOLS = (1, 2, 3, 6)  # cells along a side of pyramid pooling (PSPNet)
SCALES = (4.0, 2.0, 1.0, 0.5)  # of the grid, one for each of four layers (BEiT's UperNet, ViTDet)


class ClassHead(nn.Module):
    """[class token, mean patch] -> linear, as DINOv2's linear probe; without a class token the mean patch alone.

    forward: tokens of one layer -> scores [B, K].
    """

    def __init__(self, width: int, outputs: int, has_cls: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width * (2 if has_cls else 1), outputs)
        _start_small(self.classifier)

    def forward(self, layers: Sequence[Tokens]) -> Tensor:
        last = layers[-1]
        mean = last.patches.mean((1, 2))
        pooled = mean if last.cls is None else torch.cat([last.cls, mean], -1)
        scores: Tensor = self.classifier(self.dropout(pooled))
        return scores


class LinearHead(nn.Module):
    """One linear map of each patch: [B, h, w, D] -> [B, K, h, w]. `with_cls` puts the class token behind every patch,
    as DINOv2's depth head does."""

    def __init__(self, width: int, outputs: int, dropout: float = 0.0, with_cls: bool = False) -> None:
        super().__init__()
        self.with_cls = with_cls
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width * (2 if with_cls else 1), outputs)
        _start_small(self.classifier)

    def forward(self, layers: Sequence[Tokens]) -> Tensor:
        patches, cls = layers[-1]
        if self.with_cls:
            assert cls is not None
            patches = torch.cat([patches, cls[:, None, None].expand_as(patches)], -1)
        return self.classifier(self.dropout(patches)).movedim(-1, 1)


class ConvHead(nn.Module):
    """Two 3 x 3 convolutions, the second at twice the grid: [B, h, w, D] -> [B, K, 2h, 2w]."""

    def __init__(self, width: int, outputs: int, channels: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = _conv(width, channels, 3)
        self.second = _conv(channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, outputs, 1)
        _start_small(self.classifier)

    def forward(self, layers: Sequence[Tokens]) -> Tensor:
        x = self.first(layers[-1].patches.movedim(-1, 1))
        x = self.second(F.interpolate(x, scale_factor=2, mode="bilinear"))
        scores: Tensor = self.classifier(self.dropout(x))
        return scores


class PyramidHead(nn.Module):
    """UperNet (Xiao 2018) on a plain ViT: layers at 4, 2, 1, 1/2 of the grid, [B, h, w, D] x 4 -> [B, K, 4h, 4w].

    Pyramid pooling on the coarsest, a path from coarse to fine that adds up, a 3 x 3 convolution on each level, all of
    them together at the finest, and a linear map.
    """

    def __init__(self, width: int, outputs: int, channels: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.resize = nn.ModuleList([_resize(width, scale) for scale in SCALES])
        self.lateral = nn.ModuleList([_conv(width, channels, 1) for _ in SCALES[:-1]])
        self.pools = nn.ModuleList([nn.Sequential(nn.AdaptiveAvgPool2d(n), _conv(width, channels, 1)) for n in POOLS])
        self.pooled = _conv(width + len(POOLS) * channels, channels, 3)
        self.smooth = nn.ModuleList([_conv(channels, channels, 3) for _ in SCALES[:-1]])
        self.fuse = _conv(len(SCALES) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, outputs, 1)
        _start_small(self.classifier)

    def forward(self, layers: Sequence[Tokens]) -> Tensor:
        maps = [resize(one.patches.movedim(-1, 1)) for resize, one in zip(self.resize, layers, strict=True)]
        coarse = maps[-1]
        around = [_scaled(pool(coarse), coarse) for pool in self.pools]
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=False)]
        levels.append(self.pooled(torch.cat([coarse, *around], 1)))
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = levels[i] + _scaled(levels[i + 1], levels[i])
        levels = [*(smooth(x) for smooth, x in zip(self.smooth, levels, strict=False)), levels[-1]]
        fused = self.fuse(torch.cat([_scaled(x, levels[0]) for x in levels], 1))
        scores: Tensor = self.classifier(self.dropout(fused))
        return scores


HEADS: dict[str, Callable[..., nn.Module]] = {"linear": LinearHead, "conv": ConvHead, "pyramid": PyramidHead}


def layers_for(kind: str, depth: int) -> tuple[int, ...]:
    """Which layers a head reads, of a tower of `depth` blocks (1 is what the first block gives)."""
    if kind != "pyramid":
        return (depth,)
    return tuple(max(1, round(depth * k / 4)) for k in (1, 2, 3, 4))


def depth_of(scores: Tensor, low: float, high: float) -> Tensor:
    """Scores [B, K, h, w] -> depth in metres [B, h, w] (AdaBins with uniform bins, as DINOv2 and DINOv3 use it).

    p = (relu(scores) + 0.1) / sum over bins;  depth = sum_k p_k bin_k,  bins = linspace(low, high, K)
    """
    bins = torch.linspace(low, high, scores.shape[1], device=scores.device)
    share = scores.float().relu() + 0.1
    return torch.einsum("bkhw,k->bhw", share / share.sum(1, keepdim=True), bins)


def scaled_up(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, K, h, w] -> [B, K, H, W], bilinear."""
    return F.interpolate(scores.float(), size=size, mode="bilinear", align_corners=False)


def _start_small(layer: Any) -> None:
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    # pyramid pooling normalises maps of one place: a group must hold several channels, or nothing is left of them
    groups = next(n for n in (32, 16, 8, 4, 2, 1) if outputs % n == 0 and (outputs // n >= 4 or n == 1))
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.GroupNorm(groups, outputs), nn.GELU()
    )


def _resize(width: int, scale: float) -> nn.Module:
    """[B, D, h, w] to `scale` times the grid."""
    if scale == 4:
        return nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2), nn.GELU(), nn.ConvTranspose2d(width, width, 2, 2))
    if scale == 2:
        return nn.ConvTranspose2d(width, width, 2, 2)
    return nn.Identity() if scale == 1 else nn.AvgPool2d(2, ceil_mode=True)


def _scaled(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
