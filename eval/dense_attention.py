"""Open-vocabulary segmentation with a frozen image-text tower: its last attention, changed so that it stays local.

Legend: B images, N tokens (CLS first), H heads, d width of a head, D = H d, C classes (their text embeddings).

CLIP was trained through its CLS token; its patches look elsewhere. The forms below replace softmax(q k^T) by something
that keeps each patch's own content. All of them leave the weights as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError


def vanilla(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt d) v: what the tower was trained with. q, k, v and result [B, H, N, d], here and below."""
    return _attention(q, k) @ v


def maskclip(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """v: no attention at all (MaskCLIP, Zhou et al. 2022). Its block has no residual and no MLP either."""
    return v


def sclip(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(softmax(q q^T / sqrt d) + softmax(k k^T / sqrt d)) v: SCLIP's correlative self-attention, a sum, no mean."""
    return (_attention(q, q) + _attention(k, k)) @ v


def gem(q: Tensor, k: Tensor, v: Tensor, iterations: int = 1, temperature: float | None = None) -> Tensor:
    """Mean over p of softmax(p p^T / t) v for p = q, k and v, each of unit length and first smoothed by itself (GEM).

        p <- normalise(p);  `iterations` times: p <- normalise(softmax(p p^T / t) p)

    t: by default sqrt(d) / mean ||v||, so that the sharpness follows the tower's own scale. Written from the paper
    (Bousselham et al. 2023); not compared with its code.
    """
    scale = q.shape[-1] ** 0.5 / v.norm(dim=-1).mean().item() if temperature is None else temperature
    total = torch.zeros_like(v)
    for part in (q, k, v):
        own = F.normalize(part, dim=-1)
        for _ in range(iterations):
            own = F.normalize((own @ own.transpose(-2, -1) / scale).softmax(-1) @ own, dim=-1)
        total = total + (own @ own.transpose(-2, -1) / scale).softmax(-1) @ v
    return total / 3


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "vanilla": vanilla, "maskclip": maskclip, "sclip": sclip, "gem": gem,
}  # fmt: skip
# Which forms keep the block's residual and MLP (the rest go straight from out_proj to the final norm).
KEEPS_BLOCK = {"vanilla": True, "maskclip": False, "sclip": True, "gem": False}


def _attention(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.transpose(-2, -1) * one.shape[-1] ** -0.5).softmax(-1)


def heads_of(tokens: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, H, N, d] of normed tokens [B, N, D] by a fused projection: weight [3 D, D], bias [3 D]."""
    if weight.shape[0] != 3 * tokens.shape[-1] or tokens.shape[-1] % heads:
        raise ConfigError(
            f"attention: tokens {tuple(tokens.shape)}, weight {tuple(weight.shape)}, {heads} heads; need [B, N, D], "
            "[3 D, D] and heads that divide D"
        )
    fused = F.linear(tokens, weight, bias).unflatten(-1, (3, heads, -1))
    q, k, v = fused.permute(2, 0, 3, 1, 4)
    return q, k, v


def joined_heads(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The output projection: [B, H, N, d] -> [B, N, D]."""
    return F.linear(values.transpose(1, 2).flatten(2), weight, bias)


def class_scores(patches: Tensor, texts: Tensor, scale: float = 100.0) -> Tensor:
    """Scores [B, h, w, C] of patches in the shared space [B, h, w, E] for classes [C, E] or prompts [C, P, E].

    Cosine times `scale` (CLIP's is about 100). Of several prompts of a class the unit vectors are averaged first.
    """
    names = F.normalize(texts.float(), dim=-1)
    names = F.normalize(names.mean(1), dim=-1) if texts.ndim == 3 else names
    return scale * F.normalize(patches.float(), dim=-1) @ names.T
