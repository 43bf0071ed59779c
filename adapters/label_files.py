"""Labels that are pictures: class ids and depth, as they are stored, and the lists that say what they mean."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino_tower.adapters.tasks import VOID
from dino_tower.checkpoint import reason
from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage, read_bytes
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
            name, stored = f"mask of {first.sample_id(index)}", stored_values(first[index].payload, "mask")
        else:
            path = self.files[index]
            assert isinstance(path, Path)
            name, stored = str(path), stored_values(path, str(path))
        if stored.ndim != 2:
            raise ConfigError(f"{name}: a mask in {stored.shape[2]} channels; class ids need one (palette or grey)")
        values = np.unique(stored)
        allowed = self.table if self.table is not None else {*range(self.classes), VOID}
        if wrong := [int(value) for value in values if int(value) not in allowed]:
            known = f"0 to {self.classes - 1}, and {VOID} does not count" if self.table is None else "others"
            raise ConfigError(f"{name}: class id {wrong[0]}; the {self.classes} classes are {known}")
        if self.table is None:
            return stored.astype(np.uint8)
        lookup = np.full(int(values.max()) + 1, VOID, np.uint8)
        for value in values:
            lookup[value] = self.table[int(value)]
        return lookup[stored]


@dataclass(frozen=True)
class DepthFiles:
    """Depth of the i-th file. units: name without suffix -> (units a metre, the value of what was not measured)."""

    files: Sequence[Path]
    units: Mapping[str, tuple[float, int]]

    def __call__(self, index: int) -> np.ndarray:
        """float32 [H, W] metres, 0 where it is not known. Raises ConfigError."""
        path = self.files[index]
        stored = stored_values(path, str(path))
        scale, invalid = self.units.get(path.stem.removesuffix("_depth"), (MILLIMETRES, 0))
        if stored.ndim != 2 or stored.dtype == np.uint8:
            raise ConfigError(f"{path}: depth needs one channel of 16 bits, {scale:g} units a metre")
        return np.where(stored == invalid, 0, stored / scale).astype(np.float32)


def stored_values(source: Any, name: str) -> np.ndarray:
    """The values of a picture as they are stored, palette numbers not looked up: [H, W] or [H, W, channels].

    source: a path, bytes, a PIL image or a function that gives one. Raises ConfigError.
    """
    try:
        source = source() if callable(source) else source
        if isinstance(source, str | Path):
            source = read_bytes(source)
        if isinstance(source, bytes):
            source = Image.open(io.BytesIO(source), formats=("PNG", "TIFF", "BMP", "GIF", "JPEG"))
            if source.format == "JPEG":
                raise ConfigError(f"{name}: a JPEG keeps no exact values; save labels as PNG")
        values = np.asarray(source)
    except ConfigError:
        raise
    except UnreadableImage as error:
        raise ConfigError(f"{name}: {error.reason}") from None
    except Exception as error:  # decoders meet broken files with every kind of exception
        raise ConfigError(f"{name}: cannot be read as a label: {' '.join(str(error).split())[:150]}") from None
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind not in "iu" or not 0 <= values.min() <= values.max() < 1 << 16:
        raise ConfigError(f"{name}: holds {values.dtype} from {values.min():g} to {values.max():g}; needs 0 to 65535")
    return values if values.dtype.kind == "u" and values.dtype.itemsize <= 2 else values.astype(np.uint16)


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
