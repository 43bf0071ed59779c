"""Labels that are pictures: class ids and depth, as they are stored, and the lists that say what they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_tower.checkpoint import reason
from dino_tower.errors import ConfigError
from dino_tower.label_pictures import VOID, class_ids, in_metres, read_stored
from dino_tower.sources import Source

MILLIMETRES = 1000.0


@dataclass(frozen=True)
class MaskFiles:
    """Class ids of the i-th file, or of the i-th picture of a source. table: stored value -> class; others are wrong.

    Without a table the stored values are the ids, and 255 does not count.
    """

    files: Sequence[Path] | Sequence[Source]
    classes: int
    table: Mapping[int, int] | None = None

    def __call__(self, index: int) -> np.ndarray:
        """uint8 [H, W]. Raises ConfigError for a file that is no mask, or that holds another class id."""
        first = self.files[0]
        if isinstance(first, Source):
            name = f"mask of {first.sample_id(index)}"
            return class_ids(read_stored(first[index].payload, "mask"), name, self.classes, self.table)
        return class_ids(read_stored(self.files[index]), str(self.files[index]), self.classes, self.table)


@dataclass(frozen=True)
class DepthFiles:
    """Depth of the i-th file. units: name without suffix -> (units a metre, the value of what was not measured)."""

    files: Sequence[Path]
    units: Mapping[str, tuple[float, int]]

    def __call__(self, index: int) -> np.ndarray:
        """float32 [H, W] metres, 0 where it is not known. Raises ConfigError."""
        path = self.files[index]
        scale, invalid = self.units.get(path.stem.removesuffix("_depth"), (MILLIMETRES, 0))
        return in_metres(read_stored(path), str(path), scale, invalid)


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, stripped, without empty ones. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {reason(error)}") from None
    return [line.strip() for line in lines if line.strip()]


def read_classes(path: Path) -> tuple[tuple[str, ...], dict[int, int] | None]:
    """(names, stored value -> class): a name a line, a JSON list of names, or {"value": "name"} in JSON.

    With values the classes are numbered from 0 in their order; a value 0 that is not among them does not count.
    Raises ConfigError for a file that is none of these.
    """
    if path.suffix != ".json":
        names, table = read_lines(path), None
    else:
        data = _json(path)
        if isinstance(data, dict) and all(key.isdigit() for key in data):
            names = [str(name) for name in data.values()]
            table = {0: VOID, VOID: VOID} | {int(value): place for place, value in enumerate(data)}
        elif isinstance(data, list):
            names, table = [str(name) for name in data], None
        else:
            raise ConfigError(f'{path}: needs a list of names or {{"value": "name"}}')
    if not 2 <= len(names) < VOID:
        raise ConfigError(f"{path}: {len(names)} classes; masks hold 2 to {VOID - 1}")
    return tuple(names), table


def depth_units(path: Path) -> dict[str, tuple[float, int]]:
    """index.json: rows of id, depth_units_per_metre and invalid (0). Nothing where there is no such file."""
    if not path.is_file():
        return {}
    units = {}
    for row in _json(path):
        scale = row.get("depth_units_per_metre") if isinstance(row, dict) else None
        if not isinstance(scale, int | float) or not scale > 0 or "id" not in row:
            raise ConfigError(f"{path}: every row needs an id and depth_units_per_metre above 0, not {row!r:.80}")
        units[str(row["id"])] = (float(scale), int(row.get("invalid", 0)))
    return units


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {reason(error)}") from None
