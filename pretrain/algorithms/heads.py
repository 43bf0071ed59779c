"""The projection head of DINO: an MLP, an L2 norm, and a weight-normalised layer of prototypes.

B rows, D features, H hidden, d bottleneck, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """Linear [B, d] -> [B, K] whose rows are g v / |v|; parameters are named as in the published checkpoints.

    norm_last_layer keeps the gain g at 1 and frozen (DINO, section 3.1; vision_transformer.py::DINOHead). Without
    weight_norm there is no gain, and the rows are v as they are (DINOv3).
    """

    weight_g: nn.Parameter | None

    def __init__(
        self, bottleneck: int, prototypes: int, norm_last_layer: bool = True, weight_norm: bool = True
    ) -> None:
        super().__init__()
        direction = nn.Linear(bottleneck, prototypes, bias=False).weight  # PyTorch's default initialisation
        gain = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not norm_last_layer)
        self.register_parameter("weight_g", gain if weight_norm else None)
        self.weight_v = nn.Parameter(direction.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.weight_g is None:
            return F.linear(x, self.weight_v)
        # scaling the logits is cheaper than scaling the rows: of the 65,536 rows of 256 there would be a copy each step
        return F.linear(x, self.weight_v) * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)).T


class DinoHead(nn.Module):
    """[B, D] -> logits [B, K] (vision_transformer.py::DINOHead).

    Linear, GELU, Linear, GELU, Linear to the bottleneck, L2 norm, prototypes; batch norm after the hidden linears if
    asked. Truncated normal 0.02 on the MLP, zero biases.
    """

    def __init__(
        self,
        width: int,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (width, hidden):
            layers.append(nn.Linear(inputs, hidden))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(nn.GELU())
        layers.append(nn.Linear(hidden, bottleneck))
        self.mlp = nn.Sequential(*layers)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(bottleneck, prototypes, norm_last_layer, weight_norm)

    def project(self, x: Tensor) -> Tensor:
        """[B, D] to the unit vectors [B, d] that the prototypes are compared with."""
        return F.normalize(self.mlp(x), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(self.project(x))
