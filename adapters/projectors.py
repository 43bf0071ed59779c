"""Projectors: patch tokens of a tower to image tokens of a language model, one plain module each.

B pictures, (h, w) the patch grid, N = h w patches of width D; M image tokens of the language model's width L.
Every projector takes [B, h, w, D] or [B, N, D] and gives [B, M, L]; M is `.tokens`, known before the first picture.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from dino_tower.errors import ConfigError, unknown

Grid = tuple[int, int]


def build_projector(name: str, grid: Grid, width: int, out: int, **options: Any) -> Projector:
    """The projector `name` of PROJECTORS for patches [B, h, w, width] to tokens [B, M, out].

    Raises ConfigError for an unknown name, for an option it has not, and for sizes that do not fit each other.
    """
    if name not in PROJECTORS:
        raise unknown("projector", name, PROJECTORS)
    if wrong := sorted(set(options) - set(OPTIONS[name])):
        if not OPTIONS[name]:
            raise ConfigError(f"projector {name!r} has no options, and {wrong[0]!r} was given")
        raise unknown("option", wrong[0], OPTIONS[name], f"projector {name!r}")
    for key, value in options.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"projector {name!r}: {key} {value!r}; it must be a whole number, 1 or more")
    return PROJECTORS[name](grid, width, out, **options)


class Projector(nn.Module):
    """grid: (h, w) that it is made for; width: D; out: L; tokens: M."""

    def __init__(self, grid: Grid, width: int, out: int, tokens: int) -> None:
        super().__init__()
        self.grid, self.width, self.out, self.tokens = grid, width, out, tokens

    def rows(self, patches: Tensor) -> Tensor:
        """[B, N, D] from either form. Raises ConfigError for another grid or width than it was made for."""
        flat = patches.flatten(1, 2) if patches.ndim == 4 else patches
        height, wide = self.grid
        if flat.shape[1:] != (height * wide, self.width):
            given = f"{flat.shape[1]} of {flat.shape[2]}"
            raise ConfigError(f"a projector for {height} x {wide} patches of width {self.width} got {given}")
        return flat

    def plane(self, patches: Tensor) -> Tensor:
        """[B, D, h, w] from either form."""
        return self.rows(patches).unflatten(1, self.grid).movedim(-1, 1)


class Linear(Projector):
    """One linear layer a patch, as in LLaVA 1 (arXiv 2304.08485, 4.1). M = N."""

    def __init__(self, grid: Grid, width: int, out: int) -> None:
        super().__init__(grid, width, out, grid[0] * grid[1])
        self.linear = nn.Linear(width, out)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, h, w, D] or [B, N, D] to [B, N, L]."""
        return self.linear(self.rows(patches))


class Mlp(Projector):
    """Two layers with a GELU between them, as in LLaVA 1.5 (arXiv 2310.03744, 3.2). M = N.

    The layers have the names of transformers' LlavaMultiModalProjector, so that weights go from one to the other.
    """

    def __init__(self, grid: Grid, width: int, out: int) -> None:
        super().__init__(grid, width, out, grid[0] * grid[1])
        self.linear_1 = nn.Linear(width, out)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(out, out)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, h, w, D] or [B, N, D] to [B, N, L]."""
        return self.linear_2(self.act(self.linear_1(self.rows(patches))))


class PixelShuffle(Projector):
    """factor x factor patches side by side in one token, then norm and MLP: InternVL's (arXiv 2404.16821, 3.1).

    M = h w / factor^2. Nothing is averaged: a token holds the features of all its patches, row by row.
    """

    def __init__(self, grid: Grid, width: int, out: int, factor: int = 2) -> None:
        height, wide = grid
        if height % factor or wide % factor:
            raise ConfigError(f"pixel shuffle merges {factor} x {factor} patches, and the grid is {height} x {wide}")
        super().__init__(grid, width, out, height * wide // factor**2)
        self.factor = factor
        self.norm = nn.LayerNorm(width * factor**2)
        self.linear_1 = nn.Linear(width * factor**2, out)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(out, out)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, h, w, D] or [B, N, D] to [B, N / factor^2, L]."""
        f, (height, wide) = self.factor, self.grid
        cut = self.rows(patches).unflatten(1, (height // f, f, wide // f, f))  # [B, h/f, f, w/f, f, D]
        merged = cut.transpose(2, 3).flatten(3).flatten(1, 2)
        return self.linear_2(self.act(self.linear_1(self.norm(merged))))


class CAbstractor(Projector):
    """Convolutions, a mean over cells, convolutions: Honeybee's C-Abstractor (arXiv 2312.06742, 3.2 and appendix B).

    tokens: M, a square number: the picture is pooled to its root on either side. depth: blocks before and after the
    pooling. The blocks are timm's RegStage with LayerNorm and SiLU, as the authors' projectors/projectors.py builds
    them; `hidden` is their width.
    """

    def __init__(self, grid: Grid, width: int, out: int, tokens: int = 144, depth: int = 3, hidden: int = 1024) -> None:
        side = isqrt(tokens)
        if side**2 != tokens:
            raise ConfigError(f"the C-Abstractor makes a square of tokens, and {tokens} is none; {side**2} is")
        if side > min(grid):
            raise ConfigError(f"the C-Abstractor cannot make {side} x {side} tokens from {grid[0]} x {grid[1]} patches")
        super().__init__(grid, width, out, tokens)
        self.positions = nn.Parameter(torch.zeros(1, grid[0] * grid[1], width))
        self.before = _reg_stage(depth, width, hidden)
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.after = _reg_stage(depth, hidden, hidden)
        self.linear_1 = nn.Linear(hidden, out)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(out, out)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, h, w, D] or [B, N, D] to [B, M, L]."""
        hidden = self.before(self.plane(self.rows(patches) + self.positions))
        hidden = self.after(self.pool(hidden)).flatten(2).transpose(1, 2)
        return self.linear_2(self.act(self.linear_1(hidden)))


class Resampler(Projector):
    """Learned queries that attend to the patches once: Qwen-VL's (arXiv 2308.12966, 2.1; its visual.py::Resampler).

    tokens: M queries. heads: of the attention, which is as wide as the language model. The keys carry fixed sines of
    their place (row and column), the queries learn theirs.
    """

    def __init__(self, grid: Grid, width: int, out: int, tokens: int = 64, heads: int = 8) -> None:
        if out % heads:
            raise ConfigError(f"the resampler's {heads} heads do not divide the language model's width {out}")
        if out % 4:
            raise ConfigError(f"the resampler needs a language model whose width is a multiple of 4, not {out}")
        super().__init__(grid, width, out, tokens)
        self.queries = nn.Parameter(torch.empty(tokens, out))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.into = nn.Linear(width, out, bias=False)
        self.norm_keys = nn.LayerNorm(out)
        self.norm_queries = nn.LayerNorm(out)
        self.attention = nn.MultiheadAttention(out, heads, batch_first=True)
        self.norm = nn.LayerNorm(out)
        self.proj = nn.Linear(out, out)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, h, w, D] or [B, N, D] to [B, M, L]."""
        values = self.norm_keys(self.into(self.rows(patches)))
        keys = values + sines(self.grid, self.out).to(values)
        queries = self.norm_queries(self.queries).expand(len(values), -1, -1)
        return self.proj(self.norm(self.attention(queries, keys, values, need_weights=False)[0]))


def sines(grid: Grid, width: int) -> Tensor:
    """[N, width]: half of it for the row, half for the column; a sine and a cosine each, wavelengths 1 to 10000."""
    waves = 10000.0 ** -torch.linspace(0, 1, width // 4 + 1)[:-1]
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [place.flatten()[:, None] * waves for place in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)


def _reg_stage(depth: int, width: int, out: int) -> nn.Module:
    from timm.layers import LayerNorm2d  # takes a second to import, and only this projector needs it
    from timm.models.regnet import RegStage

    return RegStage(depth, width, out, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)


PROJECTORS: dict[str, Callable[..., Projector]] = {
    "linear": Linear,
    "mlp": Mlp,
    "pixel-shuffle": PixelShuffle,
    "c-abstractor": CAbstractor,
    "resampler": Resampler,
}
# Options beyond the sizes that the tower and the language model give; all are whole numbers.
OPTIONS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "mlp": (),
    "pixel-shuffle": ("factor",),
    "c-abstractor": ("tokens", "depth", "hidden"),
    "resampler": ("tokens", "heads"),
}
