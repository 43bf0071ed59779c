"""What a term of an objective is given, and what it gives.

V views of B images (the two global ones first), h x w the patch grid of a global view, D features of a token.
A term knows networks and tensors: no files, no launcher; what it asks of other processes is guarded by
`dist.is_initialized()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.alarms import Rule
from dino_tower.pretrain.loading.draws import Draw
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source

if TYPE_CHECKING:
    from dino_tower.pretrain.network.student_teacher import Network

Parts = dict[str, Callable[[], nn.Module]]


@dataclass(frozen=True)
class Inputs:
    """One micro-batch of one process on its device."""

    views: list[Tensor]
    """Normalised pixels [B, 3, S, S]."""
    labels: Tensor
    """int64 [B], -1 where there is none."""
    captions: list[str] = field(default_factory=list)
    """One an image, if a term reads captions."""
    drawn: Mapping[str, Tensor] = field(default_factory=dict)
    """What the terms' draws gave, stacked: [B, ...] by name."""

    mean: Tensor | None = None
    """What was taken off the pixels [1, 3, 1, 1] ..."""
    std: Tensor | None = None
    """... and what they were divided by; none: they are as they were."""

    def unnormalised(self, view: Tensor) -> Tensor:
        """A view's pixels from 0 to 1 again."""
        return view if self.mean is None or self.std is None else view * self.std + self.mean

    @property
    def masks(self) -> Tensor | None:
        """What the student must not see of the two global views: bool [2, B, h, w], True where hidden. Or None."""
        return self.drawn["masks"].movedim(1, 0) if "masks" in self.drawn else None


@dataclass(frozen=True)
class Seen:
    """What a backbone makes of views, after its final norm."""

    pooled: Tensor
    """[V, B, D]: the class token, or the mean of the patches where the class has none."""
    patches: Tensor | None
    """Of the two global views [2, B, h, w, D]; None where no term reads them."""


def first_views(student: Network, seen: Seen | None, inputs: Inputs, count: int) -> Tensor:
    """One vector for each picture of the first `count` (1 or 2) global views, [count, B, D].

    From what other terms have looked at, unless they hide patches; else the student's backbone looks at them now.
    """
    if seen is not None and inputs.masks is None:
        return seen.pooled[:count]
    return student.see(inputs.views[:count], patches=False).pooled


@dataclass(frozen=True)
class Rates:
    """What the schedules say at one step."""

    teacher_temp: float
    frozen: bool = False
    """The prototypes do not move in this step: their gradient need not be computed."""
    backbone_frozen: bool = False
    """Nor does the backbone."""
    progress: float = 0.0
    """Share of the run that is done."""


class Term(nn.Module):
    """One named part of the loss; the defaults are those of a term that has no state and asks nobody.

    Its buffers, in modules of its own, are its state: saved, resumed, and moved by `commit` alone. A step calls
    `targets` and `loss` for each micro-batch, then `commit`, or `forget` if something in it was not finite.
    """

    looks: ClassVar[Literal["all", "globals", "none"]] = "all"
    """Which views the student's backbone must see for it; none: it calls the backbone itself."""
    asks_teacher: ClassVar[bool] = True
    """Whether the teacher's backbone must see the two global views for it."""
    reads_patches: ClassVar[bool] = False
    """Whether it reads the patches of what is seen; where no term does, they may be left out."""
    hides: ClassVar[bool] = False
    """Whether the student sees mask tokens, where the drawn `masks` say so: they are trained then."""
    reads_captions: ClassVar[bool] = False

    @staticmethod
    def one_view(config: Config) -> bool:
        """Whether it reads the first global view alone; where all terms do, no other is cut."""
        return False

    def __init__(self, config: Config) -> None:
        super().__init__()

    @staticmethod
    def parts(config: Config, backbone: PreTrainedModel, source: Source | None) -> Parts:
        """Name -> how to make it: what the networks need beside the backbone. Terms that name the same part share it.

        `source` is for what follows from the data (classes), None where nobody trains.
        """
        return {}

    @staticmethod
    def student_only() -> frozenset[str]:
        """Names of parts that the teacher does without."""
        return frozenset()

    @staticmethod
    def draw(config: Config, patch: int) -> Draw | None:
        """What is drawn for each sample beside its views, in the loader's process (draws.py); it must pickle."""
        return None

    @staticmethod
    def check_source(config: Config, source: Source) -> None:
        """Raise ConfigError for data that the term cannot learn from. Settings are checked in settings.py."""

    def targets(self, teacher: Network, seen: Seen | None, inputs: Inputs, rates: Rates) -> Any:
        """What the teacher says, without gradient. `seen` is None unless a term asks the teacher."""
        return None

    def loss(self, student: Network, seen: Seen | None, inputs: Inputs, targets: Any, rates: Rates) -> Tensor:
        """The scalar. `seen` holds what the terms together look at; None if none of them does."""
        raise NotImplementedError

    def frozen_networks(self) -> list[nn.Module]:
        """Those that teach and are no part of the run: a continuation must find them as they were."""
        return []

    def commit(self) -> None:
        """The step was good: move the state by what was observed."""

    def forget(self) -> None:
        """Drop what was observed since the last commit."""

    def health(self, targets: Any, loss: Tensor) -> dict[str, float]:
        """Numbers for the log beside the loss, of the last micro-batch."""
        return {}

    def rules(self) -> dict[str, Rule]:
        """Alarms over the log's rows."""
        return {}
