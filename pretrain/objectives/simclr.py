"""SimCLR: of all views of a batch, a view finds the other one of its picture (Chen et al. 2020, arXiv 2002.05709).

n views of pictures on this process, N on all; d features that they are compared in.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.alarms import Rule
from dino_tower.contrast import gathered
from dino_tower.pretrain.objectives.spread import alike_rule, spread
from dino_tower.pretrain.objectives.term import Inputs, Parts, Rates, Seen, Term
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source
from dino_tower.tokens import width

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network


class Projection(nn.Sequential):
    """Linear, ReLU, Linear: [B, D] to [B, d]. Batch norm after both if asked (model_util.py::projection_head)."""

    def __init__(self, features: int, hidden: int, outputs: int, batch_norm: bool) -> None:
        norms = [nn.BatchNorm1d(size) if batch_norm else nn.Identity() for size in (hidden, outputs)]
        first, last = nn.Linear(features, hidden, bias=not batch_norm), nn.Linear(hidden, outputs, bias=not batch_norm)
        super().__init__(first, norms[0], nn.ReLU(), last, norms[1])
        if batch_norm:
            norms[1].bias.requires_grad_(False)  # the reference scales there and does not shift


class Simclr(Term):
    """No state. The batch is that of all processes; micro-batches of an accumulated step do not see each other."""

    looks = "globals"
    asks_teacher = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.temperature = config.simclr.temperature
        self.noted: dict[str, Tensor] = {}

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        c = config.simclr
        return {"simclr": partial(Projection, width(backbone), c.hidden, c.outputs, c.batch_norm)}

    @staticmethod
    def student_only() -> frozenset[str]:
        return frozenset({"simclr"})

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: None, rates: Rates) -> Tensor:
        assert seen is not None
        # both views in one batch norm, as in the reference
        z = F.normalize(student.part("simclr")(seen.pooled[:2].flatten(0, 1)).float(), dim=-1)
        loss, found = nt_xent(z, self.temperature)
        self.noted = {"simclr_accuracy": found, "simclr_spread": spread(z)}
        return loss

    def health(self, targets: None, loss: Tensor) -> dict[str, float]:
        """simclr_accuracy: share of the views whose nearest is the other one of their picture. simclr_spread."""
        return {name: value.item() for name, value in self.noted.items()}

    def rules(self) -> dict[str, Rule]:
        return alike_rule("simclr", "every picture", "Raise simclr.temperature, or lower optim.base_lr")


def nt_xent(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Equation 1 for this process's unit vectors z [n, d], the first views of its pictures and then the second ones:

        mean over views i of  -z_i z_j / t + ln sum over k != i of exp(z_i z_k / t)      j the other view of i's picture

    k goes over the N views of all processes; the mean of the processes' losses has the gradient of the joint batch.
    Also returns the share of the views whose nearest other one is j.
    """
    n, rank = len(z), dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    with torch.autocast(z.device.type, enabled=False):
        logits = z @ gathered(z).T / temperature  # [n, N], process by process
    own = torch.arange(n, device=z.device)
    other = (own + n // 2) % n + rank * n
    logits = logits.scatter(1, (own + rank * n)[:, None], float("-inf"))
    return F.cross_entropy(logits, other), (logits.argmax(1) == other).float().mean()
