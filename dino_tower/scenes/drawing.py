"""Ink for the built-in scenes: seeded draws, noise grounds, anti-aliased shapes and textures, in integers only.

Legend: S = side of the picture in pixels; UNIT = 4096 = the side of a picture in layout units; TURN = 256 = a full
rotation. Every step is integer arithmetic (OpenCV's drawing and its *_EXACT resize are fixed-point): a scene has the
same bytes on every processor; float sines, FFTs and SIMD resizes differ in their last bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

UNIT = 4096
TURN = 256
_FINE_BITS = 14
_FINE = 1 << _FINE_BITS  # the radius of the outlines in their tables
SUBPIXEL_BITS = 4  # OpenCV draws on a grid of 1/16 pixel, whole numbers being the pixels' centres
_HALF = 1 << SUBPIXEL_BITS >> 1

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "yellow": (236, 206, 36),
    "green": (44, 158, 58),
    "blue": (36, 84, 214),
    "purple": (158, 46, 186),
    "white": (244, 244, 244),
    "orange": (238, 128, 24),
    "cyan": (50, 200, 216),
    "pink": (246, 150, 182),
    "black": (22, 22, 22),
}


class Draws:
    """Random integers of one scene: Philox words keyed by a text and an index, in one fixed order.

    Raw words rather than `Generator` methods, whose streams NumPy may change between versions (NEP 19).
    """

    def __init__(self, key: str, index: int, words: int) -> None:
        word = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        raw = np.random.Philox(key=np.array([word, index], np.uint64)).random_raw(words)
        self._bytes = raw[: words - 512].astype("<u8").view(np.uint8)
        self._words = raw[words - 512 :].tolist()
        self._at = 0

    def noise(self, sides: Sequence[int]) -> list[np.ndarray]:
        """One uint8 [g, g, 3] grid of random bytes for every g of `sides`."""
        ends = np.cumsum([3 * g * g for g in sides])
        return [self._bytes[end - 3 * g * g : end].reshape(g, g, 3) for g, end in zip(sides, ends, strict=True)]

    def below(self, n: int) -> int:
        """Uniform in 0 .. n-1."""
        self._at += 1
        return (self._words[self._at - 1] >> 11) * n >> 53

    def between(self, low: int, high: int) -> int:
        """Uniform in low .. high, both included."""
        return low + self.below(high - low + 1)

    def shuffled(self, items: Sequence) -> list:
        """A random order of `items` (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out


def noise_words(sides: Sequence[int]) -> int:
    """How many Philox words a scene takes: its noise grids, and 512 for the layout."""
    return 512 + -(-sum(3 * g * g for g in sides) // 8)


def noise_ground(grids: Sequence[np.ndarray], size: int, contrast: int) -> np.ndarray:
    """Coloured noise with equal power in every octave, each channel's mean at mid grey: uint8 [S, S, 3].

    grids: uint8 [g, g, 3], one per octave, coarse to fine; contrast: percent of the strongest noise that cannot clip.
    The mean is taken out because it is what any two crops of a picture share, and DINO would learn nothing else.
    """
    import cv2

    total = grids[0].astype(np.uint16)
    for grid in grids[1:]:  # enlarged to the next octave's grid only: the last step alone has the full size
        total = cv2.resize(total, grid.shape[:2], interpolation=cv2.INTER_LINEAR_EXACT) + grid
    shifted = total.astype(np.int32) - total.sum(axis=(0, 1), dtype=np.int64) // (total.shape[0] * total.shape[1])
    ground = np.clip(128 + shifted.astype(np.int32) * contrast // (100 * len(grids)), 0, 255).astype(np.uint8)
    return cv2.resize(ground, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)


def _circle(radius: float, points: int = 32, start: float = 0.0) -> list[tuple[float, float]]:
    steps = [2 * math.pi * (i / points) + start for i in range(points)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in steps]


def _star(tips: int, inner: float) -> list[tuple[float, float]]:
    ends = zip(_circle(1.0, tips), _circle(inner, tips, math.pi / tips), strict=True)
    return [point for pair in ends for point in pair]


def _cross(arm: float) -> list[tuple[float, float]]:
    a, b = arm, 0.98
    return [(b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a), (-a, -b), (a, -b), (a, -a)]


def _crescent() -> list[tuple[float, float]]:
    # The outer arc runs from 50 to 310 degrees; the inner one, of a shifted centre, leads back.
    tip = math.radians(50)
    outer = [(math.cos(a), math.sin(a)) for a in (tip + i * (2 * math.pi - 2 * tip) / 28 for i in range(29))]
    shift = 0.45
    radius, angle = math.hypot(math.cos(tip) - shift, math.sin(tip)), math.atan2(math.sin(tip), math.cos(tip) - shift)
    turns = (2 * math.pi - angle - i * (2 * math.pi - 2 * angle) / 24 for i in range(1, 24))
    return outer + [(shift + radius * math.cos(a), radius * math.sin(a)) for a in turns]


# Outlines in units of the radius; a second outline cuts a hole. They stay distinct under rotation.
SHAPES: dict[str, list[list[tuple[float, float]]]] = {
    "disc": [_circle(0.94)],
    "square": [_circle(1.08, 4)],
    "triangle": [_circle(1.15, 3)],
    "cross": [_cross(0.33)],
    "ring": [_circle(1.0), _circle(0.55)],
    "bar": [[(1.2, -0.42), (1.2, 0.42), (-1.2, 0.42), (-1.2, -0.42)]],
    "star": [_star(5, 0.45)],
    "crescent": [_crescent()],
}


@cache
def _table(shape: str, turn: int) -> tuple[list[np.ndarray], tuple[int, int, int, int]]:
    """The outlines of a shape at one of TURN rotations, int64 [points, 2] the radius being _FINE, and their extent."""
    a = 2 * math.pi * turn / TURN
    c, s = math.cos(a), math.sin(a)
    # Rounding to 2^-14 hides the last bit in which sines of different machines may differ.
    turned = [
        np.array([(round(_FINE * (c * x - s * y)), round(_FINE * (s * x + c * y))) for x, y in outline], np.int64)
        for outline in SHAPES[shape]
    ]
    x, y = turned[0].T.tolist()
    return turned, (min(x), min(y), max(x), max(y))


def coverage(shape: str, turn: int, x: int, y: int, radius: int, size: int) -> tuple[np.ndarray, int, int]:
    """How much of each pixel a shape covers: (uint8 [h, w], left, top) of the part inside the picture.

    x, y, radius: in layout units (UNIT = the picture's side); turn: 0 .. TURN-1. Outside the picture h or w is 0.
    """
    import cv2

    fine = size << SUBPIXEL_BITS
    x, y, radius = (v * fine // UNIT - half for v, half in ((x, _HALF), (y, _HALF), (radius, 0)))
    outlines, (x0, y0, x1, y1) = _table(shape, turn)
    left, top = (max((v + (low * radius >> _FINE_BITS) >> SUBPIXEL_BITS) - 1, 0) for v, low in ((x, x0), (y, y0)))
    right, bottom = (
        min((v + (far * radius >> _FINE_BITS) >> SUBPIXEL_BITS) + 3, size) for v, far in ((x, x1), (y, y1))
    )
    mask = np.zeros((max(bottom - top, 0), max(right - left, 0)), np.uint8)
    if mask.size:
        offset = np.array([x - (left << SUBPIXEL_BITS), y - (top << SUBPIXEL_BITS)], np.int64)
        points = [((outline * radius >> _FINE_BITS) + offset).astype(np.int32) for outline in outlines]
        cv2.fillPoly(mask, points, 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return mask, left, top


def second_tone(texture: str, turn: int, radius: int, shape: tuple[int, int], at: tuple[int, int]) -> np.ndarray | None:
    """Where a texture shows its second tone: bool [h, w], or None for "plain".

    radius: the shape's, in 1/16 pixel; at: (x, y) of its centre within the patch, in 1/16 pixel.
    """
    pattern = TEXTURES[texture]
    if pattern is None:
        return None
    rows = (np.arange(shape[0], dtype=np.int64) << SUBPIXEL_BITS)[:, None] - at[1]
    columns = (np.arange(shape[1], dtype=np.int64) << SUBPIXEL_BITS)[None, :] - at[0]
    a = 2 * math.pi * turn / TURN
    c, s = round(_FINE * math.cos(a)), round(_FINE * math.sin(a))
    along, across = columns * c + rows * s >> _FINE_BITS, rows * c - columns * s >> _FINE_BITS
    # Two and a half periods across the shape, and never finer than four pixels.
    period = max(radius * 4 // 5, 4 << SUBPIXEL_BITS)
    return pattern(along + period // 4, across + period // 4, period)


def _stripes(along: np.ndarray, across: np.ndarray, period: int) -> np.ndarray:
    return (along % period * 2 < period) & (across == across)


def _dots(along: np.ndarray, across: np.ndarray, period: int) -> np.ndarray:
    u, v = along % period - period // 2, across % period - period // 2
    return u * u + v * v < period * period // 9


def _checks(along: np.ndarray, across: np.ndarray, period: int) -> np.ndarray:
    return (along % period * 2 < period) ^ (across % period * 2 < period)


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None] = {
    "plain": None,
    "striped": _stripes,
    "dotted": _dots,
    "checked": _checks,
}


def paint(planes: np.ndarray, mask: np.ndarray, left: int, top: int, tone: np.ndarray) -> None:
    """Blend a tone (uint16 [3, 1, 1] or [3, h, w], 0 .. 255) into uint8 [3, S, S] in place, as far as `mask` covers."""
    patch = planes[:, top : top + mask.shape[0], left : left + mask.shape[1]]
    weight = mask.astype(np.uint16)
    weight += weight >> 7  # 0 .. 256, so that a shift divides exactly and 16 bits hold the sum
    patch[...] = np.right_shift(patch * (256 - weight) + tone * weight, 8)
