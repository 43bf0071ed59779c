"""Labels that are pictures: class ids and depth, by the values that are stored, which colours would hide."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage, read_bytes

VOID = 255  # the class id of pixels that do not count
FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG")


def read_stored(source: Any, name: str = "") -> np.ndarray:
    """The values of a picture as they are stored, palette numbers not looked up: uint8 or uint16 [H, W] or [H, W, C].

    source: a path, bytes, a PIL image or a function that gives one. name: how messages call it, else the path.
    Raises ConfigError.
    """
    name = name or str(source)
    try:
        source = source() if callable(source) else source
        if isinstance(source, str | Path):
            source = read_bytes(source)
        if isinstance(source, bytes):
            source = Image.open(io.BytesIO(source), formats=FORMATS)
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


def class_ids(stored: np.ndarray, name: str, classes: int, table: Mapping[int, int] | None = None) -> np.ndarray:
    """uint8 [H, W]. Raises ConfigError for values that are no ids.

    table: stored value -> class; others are wrong. Without it the stored values are the ids, and VOID does not count.
    """
    if stored.ndim != 2:
        raise ConfigError(f"{name}: a mask in {stored.shape[2]} channels; class ids need one (palette or grey)")
    values = np.unique(stored)
    allowed = table if table is not None else {*range(classes), VOID}
    if wrong := [int(value) for value in values if int(value) not in allowed]:
        known = f"0 to {classes - 1}, and {VOID} does not count" if table is None else "others"
        raise ConfigError(f"{name}: class id {wrong[0]}; the {classes} classes are {known}")
    if table is None:
        return stored.astype(np.uint8)
    lookup = np.full(int(values.max()) + 1, VOID, np.uint8)
    for value in values:
        lookup[value] = table[int(value)]
    return lookup[stored]


def in_metres(stored: np.ndarray, name: str, units: float, invalid: int = 0, eight_bits: bool = False) -> np.ndarray:
    """float32 [H, W], 0 where it is not known: where `invalid` is stored. units: of the stored values, a metre.

    Raises ConfigError for several channels, and for 8 bits where those cannot hold it.
    """
    if stored.ndim != 2:
        raise ConfigError(f"{name}: a depth map in {stored.shape[2]} channels; needs one of 16 bits")
    if stored.dtype == np.uint8 and not eight_bits:
        raise ConfigError(f"{name}: a depth map of 8 bits cannot hold {units:g} units a metre; save 16 bits")
    return np.where(stored == invalid, 0, stored / units).astype(np.float32)
