"""What is no picture, or not a whole one, or too large: refused at once, with the right reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_tower.images import (
    UnreadableImage,
    read_bytes,
    read_image,
)


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"") -> bytes:
    """A PNG written by hand: PIL cannot write every kind that it can read."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", head) + before + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def reason(source, **settings) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(source, **settings)
    assert "\n" not in caught.value.reason and len(caught.value.reason) <= 200
    return caught.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated(kind: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)), kind)
    path = tmp_path / "cut"
    for share in (0.05, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        reason(path)
        reason(data[: int(len(data) * share)])


def test_not_images(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"")
    assert "empty" in reason(path) and "empty" in reason(b"")
    path.write_text("just some words, not a picture")
    assert "not an image" in reason(path) and "just som" in reason(path)
    assert "not an image" in reason(bytes(1000))
    assert reason(np.random.default_rng(0).bytes(5000))
    assert reason(b"\x89PNG\r\n\x1a\n" + b"not really")
    assert reason(b"\xff\xd8\xff\xe0" + bytes(50))
    assert "folder" in reason(tmp_path)
    assert "does not exist" in reason(tmp_path / "gone.jpg")


def test_bytes_of_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert read_bytes(path, 2, 3) == b"234" and read_bytes(path) == b"0123456789"
    with pytest.raises(UnreadableImage, match="ends after 2 of 5 bytes"):
        read_bytes(path, 8, 5)
