"""What a benchmark is asked to do. Everything that makes a comparison fair is on unless it is switched off by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.geometry import COLUMNS

FLOORS = ("random", "raw", "constant")
LAYER_MODES = ("choose", "last")
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Settings:
    """tokens, pixels: sides of the square that dense tasks show pictures in, in patches and in pixels: one for each
    column. columns: equal tokens, equal pixels. layers: "choose" also chooses among LAYERS on a slice of train, "last"
    reports the last layer only. reduced: also with features projected to 256. floors: what stands below every tower.
    limit: at most so many pictures of each split, evenly spread. dtype: of patches on disk. reference: the tower that
    the others are compared with (the first by default). device: where towers run; None is the first GPU, if there is
    one. costs: measure what each tower costs, too.
    """

    towers: tuple[str, ...]
    data: tuple[str, ...]
    suite: str = "quick"
    tokens: int = 32
    pixels: int = 512
    columns: tuple[str, ...] = COLUMNS
    layers: str = "choose"
    reduced: bool = True
    seeds: int = 3
    floors: tuple[str, ...] = FLOORS
    limit: int | None = None
    dtype: str = "float16"
    computed: str = "float32"
    device: str | None = None
    reference: str | None = None
    seed: int = 0
    costs: bool = True

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be asked for."""
        if not self.towers:
            raise ConfigError("eval: no tower given")
        if not self.data:
            raise ConfigError("eval: no data given; add --data SOURCE")
        for name, given, choices in (("column", self.columns, COLUMNS), ("floor", self.floors, FLOORS)):
            for one in given:
                if one not in choices:
                    raise unknown(name, one, choices, f"--{name}s")
        if not self.columns:
            raise ConfigError(f"--columns: name one or both of {', '.join(COLUMNS)}")
        for name, one, choices in (("layers", self.layers, LAYER_MODES), ("feature-dtype", self.dtype, DTYPES)):
            if one not in choices:
                raise unknown(name, one, choices, f"--{name}")
        for name in ("tokens", "pixels", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}; it must be 1 or more")
        if self.limit is not None and self.limit < 2:
            raise ConfigError(f"--limit {self.limit}; it must be 2 or more")
        doubled = _twice(self.towers) or _twice(self.data)
        if doubled:
            raise ConfigError(f"eval: {doubled!r} is given twice")
        if self.reference is not None and self.reference not in self.towers:
            raise unknown("tower", self.reference, self.towers, "--reference")


def _twice(names: Sequence[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)
