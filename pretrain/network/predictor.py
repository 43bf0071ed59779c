"""A small transformer that says what is at places of a picture that an encoder did not see: the decoder of MAE, the
predictor of I-JEPA.

B pictures, K patches seen, M places asked for, P tokens in front of the patches, D features of the encoder, W < D of
the predictor, O of an answer.

    tokens  = [embed(front); embed(seen) + position; mask token + position]      P + K + M of them
    answers = linear(norm(blocks(tokens))) at the M last

The order of tokens does not matter to a transformer: positions say where each belongs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dino_tower.text_tower import HeadBlock


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions [h w, width] in raster order, the first half of the features for the column, the other for the
    row: sines, then cosines, of the place times 10000^(-4 i / width), i < width / 4.

    Reference: mae/util/pos_embed.py. Raises ValueError for a width that 4 does not divide.
    """
    if width % 4:
        raise ValueError(f"positions of {width} features: the width must be a multiple of 4")
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [torch.outer(places.flatten().double(), rates) for places in (columns, rows)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1).float()


class Predictor(nn.Module):
    """See the file. `initialise` draws the weight of a linear layer; biases start at 0."""

    positions: Tensor

    def __init__(
        self,
        features: int,
        outputs: int,
        grid: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        initialise: Callable[[Tensor], object],
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", sincos_positions(width, grid), persistent=False)
        self.blocks = nn.ModuleList(HeadBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.answer = nn.Linear(width, outputs)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, front: Tensor, seen: Tensor, keep: Tensor, asked: Tensor) -> Tensor:
        """front [B, P, D] (P may be 0) and seen [B, K, D] at `keep` int64 [B, K] to answers [B, M, O] at `asked`."""
        context = self.embed(torch.cat([front, seen], 1))
        count = front.shape[1]
        x = torch.cat(
            [context[:, :count], context[:, count:] + self.positions[keep], self.mask_token + self.positions[asked]], 1
        )
        for block in self.blocks:
            x = block(x)
        answers: Tensor = self.answer(self.norm(x[:, -asked.shape[1] :]))
        return answers
