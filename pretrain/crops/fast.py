"""The fast crops back end: the same decisions as `exact`, from a uint8 array with SIMD libraries.

Cutting is torch's uint8 antialiased bicubic kernel (PIL's filter and arithmetic; within one grey level). Brightness,
contrast and saturation are all of one form, x -> a x + b L(x) + c with L the luma, and that form is closed under
composition: a chain of them is one pass over the pixels, broken only where an operation may clip. Hue turns in uint8
HSV, as PIL's does. Blur is PIL's: three box filters of fractional width are one short kernel.

Shapes: a picture is uint8 [H, W, 3], a view uint8 [S, S, 3] (or [S, S] between becoming grey and the end).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from dino_tower.pretrain.crops.views import View

LUMA = (0.299, 0.587, 0.114)  # the greyscale of PIL and of OpenCV
BLUR_PASSES = 3  # PIL's GaussianBlur

# How many times the size of its view a crop keeps when squares of pixels are averaged before the bicubic filter. At 3
# it is 0.2 to 0.4 grey levels from doing without, at 2 up to 0.8, at 1 it would be 1.5.
REDUCING_GAP = 3

# The public name, F.interpolate, spends 10 microseconds on checking arguments: a fifth of a small view.
_resize = torch.ops.aten._upsample_bicubic2d_aa.default


def fast_source(image: Image.Image) -> np.ndarray:
    """What `fast_view` cuts from: the RGB picture as uint8 [H, W, 3], read-only."""
    # np.asarray(image) gives the same in twice the time: it copies the bytes once more.
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)


def fast_view(picture: np.ndarray, view: View) -> np.ndarray:
    """One view of a picture uint8 [H, W, 3] (perhaps decoded at a reduced scale): contiguous uint8 [S, S, 3]."""
    out = cut(picture, view)
    if view.jitter is not None:
        out = color(out, view.jitter)
    if view.grayscale:
        out = cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)
    if view.blur is not None:
        kernel = blur_kernel(round(view.blur, 2))
        out = cv2.sepFilter2D(out, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    if view.solarize is not None:
        out = cv2.LUT(out, solarize_table(view.solarize))
    return cv2.cvtColor(out, cv2.COLOR_GRAY2RGB) if view.grayscale else out


def cut(picture: np.ndarray, view: View) -> np.ndarray:
    """Crop, resize to [S, S, 3] (bicubic, antialiased) and flip.

    Whatever is reduced before, the filter steps through the box as it was drawn, in fractions of pixels: a box rounded
    to whole reduced pixels would be off by more grey levels than the reduction itself.
    """
    left, top, width, height = view.box
    full_height, full_width, _ = picture.shape
    x, y = full_width / view.picture[0], full_height / view.picture[1]
    square = max(1, int(min(width * x, height * y) / (REDUCING_GAP * view.size)))
    first, columns = _span(left * x, width * x, square, full_width)
    upper, rows = _span(top * y, height * y, square, full_height)
    crop = picture[upper : upper + rows, first : first + columns]
    if square > 1:
        crop = cv2.resize(crop, (columns // square, rows // square), interpolation=cv2.INTER_AREA)[None]
    else:
        # torch sees channels-last only in a compact array, and then takes RGB as it is and returns RGB as it is.
        crop = crop[None].copy()
    size = view.size
    steps = size * square / (height * y), size * square / (width * x)
    resized = _resize(torch.from_numpy(crop).permute(0, 3, 1, 2), (size, size), False, *steps)
    out = np.ascontiguousarray(resized.numpy()[0].transpose(1, 2, 0))
    return cv2.flip(out, 1) if view.flip else out


def _span(start: float, length: float, square: int, side: int) -> tuple[int, int]:
    """(first pixel, number of pixels) that cover a box along one side in whole squares, inside the picture."""
    first = min(round(start), side - 1)
    return first, max(1, min(math.ceil(length / square) * square, (side - first) // square * square))


def color(image: np.ndarray, jitter: tuple[tuple[str, float], ...]) -> np.ndarray:
    """ColorJitter's operations in their drawn order, [S, S, 3] -> [S, S, 3].

    Pending is x -> a x + b L(x) + c. PIL clips and truncates after every operation: truncation is half a level on
    average (the -0.5 below); a factor up to 1 mixes two pictures and cannot clip, beyond 1 it may, so the pass happens.
    """
    a, b, c = 1.0, 0.0, 0.0
    mean = None
    for name, factor in jitter:
        if name == "hue":
            image = turn_hue(affine(image, a, b, c), factor)
            a, b, c, mean = 1.0, 0.0, 0.0, None
            continue
        if name == "saturation":
            a, b, c = factor * a, factor * b + (1 - factor) * (a + b), c - 0.5
        elif name == "brightness":
            a, b, c = factor * a, factor * b, factor * c - 0.5
        else:
            if mean is None:
                red, green, blue, _ = cv2.mean(image)
                mean = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
            grey = int((a + b) * mean + c + 0.5)
            a, b, c = factor * a, factor * b, factor * c + (1 - factor) * grey - 0.5
        if factor > 1:
            image = affine(image, a, b, c)
            a, b, c, mean = 1.0, 0.0, 0.0, None
    return affine(image, a, b, c)


def affine(image: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    """x -> a x + b L(x) + c for every pixel of uint8 [S, S, 3], rounded and clipped to uint8."""
    if a == 1 and b == 0 and c == 0:
        return image
    red, green, blue = b * LUMA[0], b * LUMA[1], b * LUMA[2]
    rows = [[a + red, green, blue, c], [red, a + green, blue, c], [red, green, a + blue, c]]
    return cv2.transform(image, np.array(rows))


def turn_hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Turn the hue of uint8 [S, S, 3] by `factor` of the circle, in uint8 HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    # Whole rows at once: adding to hsv[..., 0] alone would be a strided loop, slower than both conversions.
    lines = hsv.reshape(len(hsv), -1)
    np.add(lines, hue_line(hsv.shape[1], int(factor * 255) % 256), out=lines)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


@lru_cache(maxsize=1024)
def hue_line(width: int, turn: int) -> np.ndarray:
    """(turn, 0, 0) for each pixel of a row, uint8 [3 width]."""
    return np.tile(np.array([turn, 0, 0], np.uint8), width)


@lru_cache(maxsize=1024)
def blur_kernel(radius: float) -> np.ndarray:
    """The kernel of PIL's GaussianBlur(radius), float32 [taps] in multiples of 1/256 that sum to 1.

    PIL runs three box filters whose edges have a fractional weight, chosen so that the variance is radius^2
    (Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box filtering").
    OpenCV rounds each tap to 1/256: rounded here, the sum stays 1 and the picture keeps its brightness.
    """
    variance = radius * radius / BLUR_PASSES
    whole = int((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.array([edge, *[1.0] * (2 * whole + 1), edge]) / (2 * (whole + edge) + 1)
    taps = np.rint(np.convolve(np.convolve(box, box), box) * 256)
    taps[len(taps) // 2] += 256 - taps.sum()
    return (np.trim_zeros(taps) / 256).astype(np.float32)


@lru_cache(maxsize=256)
def solarize_table(threshold: int) -> np.ndarray:
    """uint8 [256]: levels from the threshold on are inverted."""
    levels = np.arange(256)
    return np.where(levels < threshold, levels, 255 - levels).astype(np.uint8)
