"""What is no picture, or not a whole one, or too large: refused at once, with the right reason."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_tower.images import MAX_PIXELS, UnreadableImage, image_size, read_bytes, read_image


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


def colours(height: int = 6, width: int = 9) -> np.ndarray:
    """uint8 [H, W, 3], every pixel different."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels(source) -> np.ndarray:
    image = read_image(source)
    assert type(image) is Image.Image and image.mode == "RGB" and not image.info
    return np.asarray(image)


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


def test_bombs_are_refused_by_their_header() -> None:
    bomb = png(60_000, 60_000, 8, 2, b"")
    assert f"60000 x 60000 = 3600000000 pixels, above the limit of {MAX_PIXELS}" in reason(bomb)
    jpeg = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = b"\xff\xff\xff\xff"  # absurd sizes in the header of a small file
    assert "65535 x 65535" in reason(bytes(jpeg))
    with pytest.raises(UnreadableImage, match="above the limit"):
        image_size(bomb)
    fine = encoded(Image.new("RGB", (64, 64)), "PNG")
    assert "above the limit of 4095" in reason(fine, max_pixels=4095)
    assert "above the limit of 4095" in reason(Image.new("L", (64, 64)), max_pixels=4095)
    assert read_image(fine, max_pixels=4096).size == (64, 64)


def test_links_and_things_that_are_no_files(tmp_path: Path) -> None:
    fifo, link, dead = tmp_path / "pipe.jpg", tmp_path / "link.png", tmp_path / "dead.png"
    os.mkfifo(fifo)
    assert "FIFO" in reason(fifo)  # nobody writes to it: an ordinary open would wait for ever
    assert "device" in reason("/dev/zero")
    dead.symlink_to(tmp_path / "nowhere.png")
    assert "broken symbolic link" in reason(dead)
    (tmp_path / "real.png").write_bytes(encoded(Image.fromarray(colours()), "PNG"))
    link.symlink_to(tmp_path / "real.png")
    np.testing.assert_array_equal(pixels(link), colours())
    assert reason(tmp_path / "real.png" / "below.png")
    assert reason("nul\0byte.png")


def test_a_process_without_handles_blames_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of file handles looked like a folder of broken pictures: it must stop the run, not empty the data."""

    def no_handles(*args):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", no_handles)
    with pytest.raises(OSError, match="Too many open files"):
        read_image(tmp_path / "picture.png")
