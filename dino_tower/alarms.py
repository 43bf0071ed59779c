"""Alarms that wait: a healthy run bounces, so a bad sign counts only when it lasts.

Each alarm says what was seen for how long, and what to change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rule:
    """A sign of illness in the numbers of a log row, and its remedy."""

    sign: Callable[[Mapping[str, float]], bool]
    meaning: str
    remedy: str


@dataclass
class Alarms:
    """Rings once for each rule whose sign has been present in every row for `patience` steps, after `grace` steps.

    An alarm that went away rings again if it comes back.
    """

    rules: Mapping[str, Rule]
    patience: int
    grace: int
    _since: dict[str, int] = field(default_factory=dict)
    _rung: set[str] = field(default_factory=set)

    def update(self, step: int, row: Mapping[str, float]) -> list[tuple[str, str]]:
        """(name, message) of the alarms that ring at this row."""
        rung = []
        for name, rule in self.rules.items():
            if not rule.sign(row):
                self._since.pop(name, None)
                self._rung.discard(name)
                continue
            since = self._since.setdefault(name, step)
            if step >= self.grace and step - since >= self.patience and name not in self._rung:
                self._rung.add(name)
                rung.append((name, f"{rule.meaning}, for {step - since} steps. {rule.remedy}"))
        return rung


def collapse_rules(prototypes: int, of: str = "", thing: str = "image") -> dict[str, Rule]:
    """The two ways in which self-distillation dies (DINO, section 5.3).

    Rows hold `entropy` (mean entropy of the teacher's targets, nats) and `usage_entropy` (entropy of their mean), both
    with `of` in front: "patch_" for the targets of patches, where `thing` is a patch.
    """
    top = math.log(prototypes)
    mean, usage, prefix = f"{of}entropy", f"{of}usage_entropy", of.replace("_", "-")
    return {
        f"{prefix}collapse-to-uniform": Rule(
            lambda row: row[mean] > 0.99 * top and row[usage] - row[mean] < 0.01 * top,
            f"the teacher gives every {thing} the same flat answer (entropy at ln K = {top:.2f})",
            "Lower loss.teacher_temp, set head.batch_norm true, or raise optim.base_lr",
        ),
        f"{prefix}collapse-to-one-prototype": Rule(
            lambda row: row[usage] < 0.02 * top,
            f"the teacher gives every {thing} the same single prototype",
            "Raise loss.teacher_temp, lower loss.centre_momentum, or lower optim.base_lr",
        ),
    }
