"""KoLeo as a term: the student's features of each global view keep away from those of other pictures (DINOv2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dino_tower.pretrain.algorithms.koleo import koleo
from dino_tower.pretrain.objectives.term import Inputs, Rates, Seen, Term

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network


class Koleo(Term):
    """The sum over the two global views, on the normed features in front of the head, within each process's batch."""

    looks = "globals"
    asks_teacher = False

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: None, rates: Rates) -> Tensor:
        assert seen is not None
        return koleo(seen.pooled[0]) + koleo(seen.pooled[1])
