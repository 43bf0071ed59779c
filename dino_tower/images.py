"""One safe reader of pictures for training, evaluation and serving, and the processor that a tower is saved with.

A picture is read as a viewer shows it: EXIF orientation applied, transparency on white, 16-bit scaled to 8, the first
frame of an animation. Colour profiles are not applied, and CMYK JPEGs are taken to be stored inverted, as Adobe's are
and as browsers assume. Whatever cannot be shown in full is refused with a reason instead of being guessed at.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from dino_tower.errors import ConfigError

if TYPE_CHECKING:
    from transformers import BitImageProcessor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 178_956_970  # width x height; the size at which PIL itself speaks of a decompression bomb
# Tried in this order by their first bytes. What PIL recognises by nothing (TGA) or runs programs for (EPS) stays out.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO")
EXTENSIONS = frozenset(
    f".{name}"
    for names in (
        "jpg jpeg jpe jfif mpo",
        "png apng",
        "webp gif avif",
        "tif tiff bmp ico",
        "jp2 j2k",
        "ppm pgm pbm pnm",
    )
    for name in names.split()
)
DARK, LIGHT = 0, 255
# EXIF orientation -> what makes the picture upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
OURS_NOT_THE_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # blame no image for a process out of handles

ImageInput = str | Path | bytes | BinaryIO | Image.Image


class UnreadableImage(ValueError):
    """A picture that cannot be shown. `reason` is one short line without the file's name."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(reason.split())[:200]
        super().__init__(self.reason)

    def __reduce__(self) -> tuple:
        return UnreadableImage, (self.reason,)


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a FIFO, device, folder, dead link or forbidden file is UnreadableImage at once.

    O_NONBLOCK: opening a FIFO that nobody writes to would otherwise wait for ever, even between a stat and the open.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(handle)
        regular = stat.S_ISREG(status.st_mode)
        raise UnreadableImage("empty file (0 bytes)" if regular else f"not a file but {_file_type(status.st_mode)}")
    with os.fdopen(handle, "rb") as file:
        yield file


def read_bytes(path: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes (default: all) of a regular file from `offset` on; UnreadableImage when they are not there."""
    with open_file(path) as file:
        try:
            file.seek(offset)
            data = file.read(-1 if size is None else size)
        except OSError as error:
            raise _cannot_open(path, error) from None
    if size is not None and len(data) < size:
        raise UnreadableImage(f"file ends after {len(data)} of {size} bytes")
    return data


def read_image(
    source: ImageInput, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Read a picture from a path, bytes, a binary file or a PIL image: mode RGB, upright, on white, without metadata.

    `at_least` (width, height) of the upright picture lets a JPEG be decoded at 1/2, 1/4 or 1/8 scale as long as the
    result still covers that many pixels. `max_pixels` is checked from the header, before anything is decoded.

    Raises:
        UnreadableImage: truncated, empty, not an image, too large, a FIFO, forbidden, vanished, ...: see `.reason`.
    """
    return read_sized(source, max_pixels=max_pixels, at_least=at_least)[0]


def read_sized(
    source: ImageInput, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """`read_image` and the full (width, height) of the upright picture, which a reduced decode no longer tells."""
    with _opened(source, max_pixels) as image:
        size = None
        if image is not source:  # a caller's own picture is neither reduced nor moved to another frame
            if at_least is not None and image.format in ("JPEG", "MPO"):
                size = _upright_size(image)
                image.draft("RGB", at_least if size == image.size else at_least[::-1])
            if image.info.get("default_image"):
                image.seek(1)  # an APNG whose still picture is not part of the animation: viewers show the animation
        image.load()
        turn = UPRIGHT.get(_orientation(image))
        rgb = as_rgb(image)
        if turn is not None:
            rgb = rgb.transpose(turn)
        return rgb, size or rgb.size


def image_size(source: ImageInput, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the upright picture, from the header alone. Raises UnreadableImage."""
    with _opened(source, max_pixels) as image:
        return _upright_size(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as 8-bit RGB: transparency on white, deep greys scaled. A new picture without metadata."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image), fixed=image.format in ("PNG", "PPM")))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (LIGHT, LIGHT, LIGHT, LIGHT))
        image = Image.alpha_composite(ground, image)
    # Neither EXIF nor a profile may travel on: whoever applies them again would turn the picture twice.
    rgb = image.convert("RGB") if image.mode != "RGB" else image.copy()
    rgb.info = {}
    return rgb


def _eight_bits(grey: np.ndarray, fixed: bool) -> np.ndarray:
    """Deep grey [H, W] to uint8. 16 bits, or `fixed`: 65535 is white. 32-bit integers and floats carry no white of
    their own: 1, 255 or 65535, whichever is the first that nothing exceeds, else the picture's own range."""
    if grey.dtype.kind == "u" or fixed:
        return ((np.clip(grey, 0, 65535).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    values = np.nan_to_num(grey.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    whites = (1, 255, 65535) if grey.dtype.kind == "f" else (255, 65535)
    white: float = next((w for w in whites if low >= 0 and high <= w), 0)
    if not white:
        values, white = values - low, max(high - low, 1e-300)
    return np.rint(values / white * 255).astype(np.uint8)


@contextmanager
def _opened(source: ImageInput, max_pixels: int) -> Iterator[Image.Image]:
    """The undecoded picture, its header checked. Every failure inside the block becomes UnreadableImage."""
    try:
        if isinstance(source, Image.Image):
            yield _checked(source, max_pixels)
        elif isinstance(source, (str, Path)):
            with open_file(source) as file:
                yield _checked(_identify(file), max_pixels)
        elif isinstance(source, (bytes, bytearray, memoryview)):
            yield _checked(_identify(io.BytesIO(source)), max_pixels)
        else:
            yield _checked(_identify(source), max_pixels)
    except UnreadableImage:
        raise
    except OSError as error:
        if error.errno in OURS_NOT_THE_FILES:
            raise
        raise UnreadableImage(str(error) or type(error).__name__) from error
    except Exception as error:  # decoders meet broken files with every kind of exception, MemoryError included
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _identify(file: BinaryIO) -> Image.Image:
    """As PIL.Image.open, with our list of formats only and without its process-wide pixel limit and warnings."""
    Image.preinit()
    start = file.tell()
    prefix = file.read(16)
    if not prefix:
        raise UnreadableImage("empty file (0 bytes)")
    failure = f"not an image (it starts with {prefix[:8]!r})"
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        accepted = accept(prefix) if accept is not None else True
        if isinstance(accepted, str):
            failure = accepted  # this PIL was built without the decoder
        elif accepted:
            file.seek(start)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                failure = f"broken {name} header: {error}"
    raise UnreadableImage(failure)


def _checked(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(f"{width} x {height} pixels")
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} = {width * height} pixels, above the limit of {max_pixels}")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation still to be applied. Broken EXIF counts as none, as in viewers."""
    try:
        # A PNG's own getexif would decode the whole picture to look for EXIF behind it.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    # PIL turns TIFFs itself, and gives their upright size before it has.
    turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def _cannot_open(path: str | Path, error: Exception) -> Exception:
    if not isinstance(error, OSError):
        return UnreadableImage(str(error))
    if error.errno in OURS_NOT_THE_FILES:
        return error
    if isinstance(error, FileNotFoundError):
        if Path(path).is_symlink():
            return UnreadableImage("broken symbolic link")
        return UnreadableImage("the file does not exist")
    return UnreadableImage(f"cannot be opened: {(error.strerror or str(error)).lower()}")


def _file_type(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def processor_for(
    size: int,
    patch: int,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> BitImageProcessor:
    """The image processor a tower of `size` pixels is saved with: resize, centre crop, normalise.

    The short edge goes to size * 256 / 224 (the published evaluation, bicubic), then a square of `size` is cut.
    """
    from transformers import BitImageProcessor

    if size < patch or size % patch:
        raise ConfigError(f"size {size} is not a multiple of the patch of {patch} pixels")
    return BitImageProcessor(
        size={"shortest_edge": round(size * 256 / 224)},
        crop_size={"height": size, "width": size},
        resample=Image.Resampling.BICUBIC,
        image_mean=list(mean),
        image_std=list(std),
        do_resize=True,
        do_center_crop=True,
        do_rescale=True,
        do_normalize=True,
        do_convert_rgb=True,
    )
