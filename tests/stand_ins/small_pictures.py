"""Small pictures of noise, and a folder of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 40


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(value).integers(0, 256, (24, 20, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, count: int = COUNT) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (root / f"{i:03d}.png").write_bytes(png(i))
    return root
