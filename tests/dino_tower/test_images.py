"""Every kind of picture that people have, compared pixel by pixel with what a viewer shows."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.images import (
    IMAGENET_MEAN,
    image_size,
    processor_for,
    read_image,
    read_sized,
)

WHITE = (255, 255, 255)


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def pixels(source) -> np.ndarray:
    image = read_image(source)
    assert type(image) is Image.Image and image.mode == "RGB" and not image.info
    return np.asarray(image)


def colours(height: int = 6, width: int = 9) -> np.ndarray:
    """uint8 [H, W, 3], every pixel different."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"") -> bytes:
    """A PNG written by hand: PIL cannot write every kind that it can read."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", head) + before + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_plain_rgb_in_every_lossless_format(kind: str, tmp_path: Path) -> None:
    settings = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(colours()), kind, **settings)
    np.testing.assert_array_equal(pixels(data), colours())
    path = tmp_path / "picture.of-any-name"
    path.write_bytes(data)
    for source in (path, str(path), io.BytesIO(data), Image.open(path)):
        np.testing.assert_array_equal(pixels(source), colours())


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "JPEG2000"])
def test_lossy_formats_come_close(kind: str) -> None:
    smooth = np.stack(np.broadcast_arrays(np.arange(0, 240, 5)[:, None], np.arange(0, 240, 5)[None], 90), -1)
    data = encoded(Image.fromarray(smooth.astype(np.uint8)), kind, quality=95) if kind != "JPEG2000" else None
    data = data or encoded(Image.fromarray(smooth.astype(np.uint8)), kind)
    assert np.abs(pixels(data).astype(int) - smooth).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_greyscale_is_the_same_in_all_three_channels(kind: str) -> None:
    grey = np.full((8, 8), 77, np.uint8)
    assert (pixels(encoded(Image.fromarray(grey), kind)) == 77).all()


def test_bilevel_is_black_and_white() -> None:
    bits = np.array([[0, 255], [255, 0]], np.uint8)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(bits).convert("1"), "PNG"))[..., 1], bits)


def test_transparency_lies_on_white() -> None:
    red = np.zeros((1, 3, 4), np.uint8)
    red[..., 0], red[..., 3] = 200, [0, 128, 255]
    expected = [WHITE, (227, 127, 127), (200, 0, 0)]
    for data in (encoded(Image.fromarray(red), "PNG"), encoded(Image.fromarray(red), "TIFF")):
        assert np.abs(pixels(data)[0].astype(int) - expected).max() <= 1
    # What hides under alpha 0 is not shown: WebP and PNG editors leave any colour there.
    hidden = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert (pixels(encoded(hidden, "WEBP", lossless=True, exact=True)) == 255).all()


def test_grey_with_alpha() -> None:
    grey = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.fromarray(np.array([[255, 0]], np.uint8))])
    np.testing.assert_array_equal(pixels(encoded(grey, "PNG"))[0], [(100, 100, 100), WHITE])


def test_palette_with_one_transparent_colour_and_with_alpha_for_each() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255], "RGB")
    np.testing.assert_array_equal(pixels(encoded(image, "PNG"))[0], [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    np.testing.assert_array_equal(pixels(encoded(image, "PNG", transparency=1))[0], [(255, 0, 0), WHITE, (0, 0, 255)])
    soft = pixels(encoded(image, "PNG", transparency=bytes([255, 0, 128])))[0].astype(int)
    assert np.abs(soft - [(255, 0, 0), WHITE, (127, 127, 255)]).max() <= 1
    np.testing.assert_array_equal(pixels(encoded(image, "GIF", transparency=2))[0], [(255, 0, 0), (0, 255, 0), WHITE])


def test_one_rgb_or_grey_value_declared_transparent() -> None:
    image = Image.fromarray(np.array([[(1, 2, 3), (9, 9, 9)]], np.uint8))
    np.testing.assert_array_equal(pixels(encoded(image, "PNG", transparency=(1, 2, 3)))[0], [WHITE, (9, 9, 9)])
    grey = Image.fromarray(np.array([[5, 6]], np.uint8))
    np.testing.assert_array_equal(pixels(encoded(grey, "PNG", transparency=5))[0], [WHITE, (6, 6, 6)])


CMYK = np.array([[(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]], np.uint8)
CMYK_SHOWN = [WHITE, (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]


def test_cmyk_tiff_and_adobe_inverted_jpeg() -> None:
    image = Image.fromarray(CMYK, "CMYK")
    np.testing.assert_array_equal(pixels(encoded(image, "TIFF"))[0], CMYK_SHOWN)
    blocks = image.resize((80, 16), Image.Resampling.NEAREST)
    data = encoded(blocks, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data[:40] and Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(pixels(data)[8, 8::16].astype(int) - CMYK_SHOWN).max() <= 2
    # The file does hold inverted ink, as Photoshop writes it: white paper is stored as 255 and not as 0.
    raw = Image.open(io.BytesIO(data))
    raw.tile = [raw.tile[0]._replace(args=("CMYK", ""))]
    assert np.asarray(raw)[8, 8].min() > 250


DEEP = np.array([[0, 257, 32768, 65535]], np.uint16)
DEEP_SHOWN = [0, 1, 128, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(kind: str) -> None:
    data = encoded(Image.fromarray(DEEP), kind)
    shown = pixels(data)
    np.testing.assert_array_equal(shown[0], np.repeat(DEEP_SHOWN, 3).reshape(4, 3))


def test_16_bit_big_endian_tiff() -> None:
    little = encoded(Image.fromarray(DEEP), "TIFF")
    image = Image.frombytes("I;16B", (4, 1), DEEP.astype(">u2").tobytes())
    data = encoded(image, "TIFF")
    assert data != little
    np.testing.assert_array_equal(pixels(data)[0, :, 0], DEEP_SHOWN)


def test_16_bit_colour_png_with_and_without_alpha() -> None:
    row = struct.pack(">B6H", 0, 65535, 0, 32768, 257, 65535, 0)
    assert np.abs(pixels(png(2, 1, 16, 2, row))[0].astype(int) - [(255, 0, 128), (1, 255, 0)]).max() <= 1
    row = struct.pack(">B8H", 0, 65535, 0, 32768, 65535, 0, 0, 0, 0)
    assert np.abs(pixels(png(2, 1, 16, 6, row))[0].astype(int) - [(255, 0, 128), WHITE]).max() <= 1
    row = struct.pack(">B4H", 0, 32768, 65535, 0, 0)
    np.testing.assert_array_equal(pixels(png(2, 1, 16, 4, row))[0], [(128, 128, 128), WHITE])


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.float32([[0, 0.5, 1]]), [0, 128, 255]),  # 0 to 1
        (np.float32([[0, 100, 255]]), [0, 100, 255]),  # 0 to 255
        (np.float32([[-1, np.nan, 1]]), [0, 128, 255]),  # its own range; what is no number counts as 0
        (np.int32([[0, 100, 255]]), [0, 100, 255]),
        (np.int32([[0, 257, 65535]]), [0, 1, 255]),
        (np.int32([[-1000, 0, 1000]]), [0, 128, 255]),
        (np.float32([[7e9, 7e9, 7e9]]), [0, 0, 0]),
    ],
)
def test_32_bit_tiff(values: np.ndarray, shown: list[int]) -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 0], shown)


UPRIGHT = np.array([[10, 60, 110], [160, 210, 250]], np.uint8).repeat(16, 0).repeat(16, 1)
# How a camera stores the upright picture under each EXIF orientation.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    data = encoded(stored, kind, exif=exif, **({"quality": 100} if kind in ("JPEG", "WEBP") else {}))
    shown = pixels(data)
    assert shown.shape == (32, 48, 3)
    assert np.abs(shown[8::16, 8::16, 1].astype(int) - [[10, 60, 110], [160, 210, 250]]).max() <= 3
    assert image_size(data) == (48, 32)
    assert read_sized(data)[1] == (48, 32)
    # Whoever reads the result again must not turn it again.
    again = read_image(read_image(data))
    np.testing.assert_array_equal(np.asarray(again), shown)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_reason_to_refuse() -> None:
    data = encoded(Image.fromarray(UPRIGHT), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff\xff\xff")
    assert pixels(data).shape == (32, 48, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    settings = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **settings)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (pixels(data) == (255, 0, 0)).all()


def test_an_animated_png_whose_still_picture_is_only_a_stand_in() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert (pixels(data) == (0, 255, 0)).all()


def test_one_pixel_wide_and_one_pixel_high() -> None:
    tall = colours(300, 1)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(tall), "PNG")), tall)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(tall.transpose(1, 0, 2)), "BMP"))[0], tall[:, 0])
    reduced, size = read_sized(encoded(Image.fromarray(tall), "JPEG"), at_least=(10, 10))
    assert reduced.size == size == (1, 300)


def test_a_hundred_megapixels_whole_and_reduced() -> None:
    # 12,500 x 8,000: two halves, so that place and colour can be checked. One row is encoded once and repeated.
    line = b"\x00" + b"\x00" * 781 + b"\xff" * 782
    data = png(12_500, 8_000, 1, 0, line * 8_000)
    assert image_size(data) == (12_500, 8_000)
    shown = pixels(data)
    assert shown.shape == (8_000, 12_500, 3)
    assert (shown[::400, :6_240] == 0).all() and (shown[::400, 6_260:] == 255).all()
    image = Image.fromarray(shown)
    del shown
    small, size = read_sized(encoded(image, "JPEG", quality=30), at_least=(600, 600))
    assert size == (12_500, 8_000) and small.size == (1_563, 1_000)
    halves = np.asarray(small)[::50, :, 0]
    assert halves[:, :750].max() < 20 and halves[:, 800:].min() > 235


@pytest.mark.parametrize("turned", [False, True])
def test_reduced_decoding_covers_what_was_asked_for(turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    data = encoded(Image.new("RGB", (400, 200), (0, 128, 255)), "JPEG", exif=exif, quality=95)
    full = (200, 400) if turned else (400, 200)
    for asked, scale in (((100, 100), 2), ((50, 25), 4 if turned else 8), ((201, 10), 1)):
        image, size = read_sized(data, at_least=asked)
        assert size == full and image.size == (full[0] // scale, full[1] // scale)
        assert np.abs(np.asarray(image).astype(int) - (0, 128, 255)).max() <= 3


def test_a_callers_own_picture_is_left_as_it_is() -> None:
    frames = [Image.new("P", (8, 6), n) for n in range(2)]
    mine = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    before = mine.mode
    read_image(mine, at_least=(1, 1))
    assert mine.mode == before and mine.tell() == 0


def test_processor_resizes_crops_and_normalises(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    processor_for(48, 8).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    out = processor(read_image(Image.new("L", (300, 200), 255)), return_tensors="pt")["pixel_values"]
    assert out.shape == (1, 3, 48, 48)
    assert processor.size["shortest_edge"] == 55
    np.testing.assert_allclose(out[0, 0].numpy(), (1 - IMAGENET_MEAN[0]) / 0.229, rtol=1e-5)
    with pytest.raises(ConfigError, match="not a multiple"):
        processor_for(50, 8)
