"""A projector and a language model, both small: a picture's tokens, then questions that see it and not each other.

P pictures, G image tokens of F features, T words, N = G + T, W width, M questions, V words and answers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dino_tower.eval.vlm_probe.asking import Rows

DEVIATION = 0.3  # of words and places as they are drawn: about that of what the projector gives


class Block(nn.Module):
    """Pre-norm transformer block: [P, N, W] to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """seen: bool [P, 1, N, N], whether a token (row) sees another."""
        q, k, v = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        return hidden + self.down(F.gelu(self.up(self.norm2(hidden))))


class SmallVLM(nn.Module):
    """LLaVA in small: an MLP of two layers for the image tokens, a decoder that sees all of them before the question.

    grid: rows and columns of image tokens; features: F; vocabulary: V; longest: words of a question at most.
    The projector is drawn last: the language model is the same whatever tower it is to read.
    """

    def __init__(
        self, features: int, grid: tuple[int, int], vocabulary: int, longest: int,
        width: int = 96, depth: int = 2, heads: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rows, self.columns, self.places, self.words = (
            nn.Parameter(DEVIATION * torch.randn(count, width)) for count in (*grid, longest, vocabulary)
        )
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        self.projector = nn.Sequential(nn.Linear(features, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, image: Tensor, asked: Rows) -> Tensor:
        """Scores [M, V] of what follows the last word of each question. image: [P, G, F]."""
        where = (self.rows[:, None] + self.columns).flatten(0, 1)
        hidden = torch.cat([self.projector(image) + where, self.words[asked.words] + self.places[asked.places]], 1)
        seen = visible(image.shape[1], asked.turns)
        for block in self.blocks:
            hidden = block(hidden, seen)
        read = hidden[asked.picture, image.shape[1] + asked.last]
        found: Tensor = self.head(self.norm(read))
        return found


def visible(tokens: int, turns: Tensor) -> Tensor:
    """bool [P, 1, N, N]: everything sees the image; a word also what stands before it in its own question."""
    pictures, words = turns.shape
    earlier = torch.ones(words, words, dtype=torch.bool).tril()
    own = (turns[:, :, None] == turns[:, None]) & earlier
    seen = torch.zeros(pictures, tokens + words, tokens + words, dtype=torch.bool)
    seen[:, :, :tokens] = True
    seen[:, tokens:, tokens:] = own
    return seen[:, None]
