"""Multi-crop augmentation: first draw every decision as plain numbers, then apply them.

`draw_views` turns one random generator into the boxes, flips, colour factors, blur radii and solarisations of the two
global and V local views of a picture. `make_views` applies them through one of two back ends that take the same
decisions: `exact` (PIL and torchvision semantics, bit for bit) and `fast` (the default: the same operations in the same
order, from uint8 arrays with SIMD libraries, within 1.5 grey levels of `exact` on average per operation).

The order of operations and every default are the published DINO augmentation (Caron et al. 2021 and its training code):
RandomResizedCrop (bicubic) -> horizontal flip -> ColorJitter -> greyscale -> Gaussian blur -> solarise.
Normalisation is not here: uint8 travels to the device, which normalises there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dino_tower.errors import ConfigError, unknown

# RGB picture -> what the views are cut from; (that, view) -> uint8 [S, S, 3]
BackEnd = tuple[Callable[[Image.Image], Any], Callable[..., np.ndarray]]


def _fast() -> BackEnd:
    from dino_tower.pretrain.crops.fast import fast_source, fast_view

    return fast_source, fast_view


def _exact() -> BackEnd:
    from dino_tower.pretrain.crops.exact import exact_source, exact_view

    return exact_source, exact_view


# Imported when first used: a mistake in a run's settings is answered before torch and OpenCV have loaded.
BACK_ENDS: dict[str, Callable[[], BackEnd]] = {"fast": _fast, "exact": _exact}
JITTERS = ("brightness", "contrast", "saturation", "hue")
ORDERS = tuple(itertools.permutations(range(4)))
# How many times the size of its view a crop keeps when the JPEG decoder reduces the picture. This is what the smallest
# possible crop keeps; most keep far more.
DECODING_GAP = 2
TRIES = 10  # torchvision's RandomResizedCrop gives up after ten boxes and takes the central one

# One row of uniform numbers per view, always of this width: switching one operation off, or another size of picture,
# leaves the decisions of all others as they were. The first 2 * TRIES columns are (area, ratio) of each try.
POSITION = 2 * TRIES
FLIP, JITTER, FACTORS, ORDER, GREY, BLUR, RADIUS, SOLARIZE, COLUMNS = (
    POSITION + k for k in (2, 3, 4, 8, 9, 10, 11, 12, 13)
)


@dataclass(frozen=True)
class CropsConfig:
    """What may be drawn. Triples are (first global, second global, locals); defaults are DINO's published ones.

    `jitter` holds the amounts for brightness, contrast, saturation and hue as torchvision's ColorJitter takes them;
    `blur_radius` is the standard deviation range in pixels of the finished view (PIL's GaussianBlur radius).
    The released DINOv2 weights were trained with `blur_p` (0.0, 0.9, 0.5).
    """

    back_end: str = "fast"
    global_size: int = 224
    local_size: int = 96
    locals: int = 8
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grayscale_p: float = 0.2
    blur_p: tuple[float, float, float] = (1.0, 0.1, 0.5)
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarize_p: tuple[float, float, float] = (0.0, 0.2, 0.0)
    solarize_threshold: int = 128

    def __post_init__(self) -> None:
        if self.back_end not in BACK_ENDS:
            raise unknown("crops back end", self.back_end, BACK_ENDS, "crops.back_end")
        for name in ("global_size", "local_size"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "a size in pixels, 1 or more")
        _check(self.locals >= 0, "locals", self.locals, "a number of local views, 0 or more")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            _check(0 < low <= high <= 1, name, (low, high), "shares of the picture's area, 0 < low <= high <= 1")
        _check(0 < self.ratio[0] <= self.ratio[1], "ratio", self.ratio, "width / height, 0 < low <= high")
        low, high = self.blur_radius
        _check(0 <= low <= high, "blur_radius", (low, high), "pixels, 0 <= low <= high")
        _check(min(self.jitter) >= 0 and self.jitter[3] <= 0.5, "jitter", self.jitter, "amounts >= 0, hue at most 0.5")
        _check(0 <= self.solarize_threshold <= 256, "solarize_threshold", self.solarize_threshold, "a level, 0 to 256")
        for name in ("flip", "jitter_p", "grayscale_p", "blur_p", "solarize_p"):
            value = getattr(self, name)
            chances = value if isinstance(value, (tuple, list)) else (value,)
            _check(all(0 <= chance <= 1 for chance in chances), name, value, "probabilities from 0 to 1")


def _check(fine: bool, name: str, value: object, wanted: str) -> None:
    if not fine:
        raise ConfigError(f"crops.{name}: {value!r} cannot be used; give {wanted}")


class View(NamedTuple):
    """Every decision about one view, as plain numbers.

    `box` is (left, top, width, height) in pixels of a picture of size `picture` (width, height); a picture that was
    decoded at a reduced scale is cut at the same place. `jitter` is ((name, factor), ...) in the order to apply, or
    None. `blur` is a radius in pixels of the view, `solarize` a threshold.
    """

    size: int
    box: tuple[int, int, int, int]
    picture: tuple[int, int]
    flip: bool
    jitter: tuple[tuple[str, float], ...] | None
    grayscale: bool
    blur: float | None
    solarize: int | None


def draw_views(config: CropsConfig, width: int, height: int, rng: np.random.Generator) -> tuple[View, ...]:
    """The decisions for the views of one picture: first global, second global, then the locals.

    Consumes (2 + locals) * COLUMNS uniform numbers of `rng`, whatever the configuration and the picture are.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels cannot be cropped")
    rows = rng.random((2 + config.locals, COLUMNS)).tolist()
    return tuple(_draw_view(config, min(index, 2), width, height, row) for index, row in enumerate(rows))


def _draw_view(config: CropsConfig, group: int, width: int, height: int, row: list[float]) -> View:
    """One view from one row of uniform numbers. group: 0 first global, 1 second global, 2 local."""
    jitter = None
    if row[JITTER] < config.jitter_p:
        amounts = config.jitter
        # ColorJitter leaves an operation of amount 0 out altogether.
        jitter = tuple(
            (JITTERS[k], _factor(k, amounts[k], row[FACTORS + k])) for k in ORDERS[int(row[ORDER] * 24)] if amounts[k]
        )
    low, high = config.blur_radius
    return View(
        size=config.local_size if group == 2 else config.global_size,
        box=_draw_box(config.local_scale if group == 2 else config.global_scale, config.ratio, width, height, row),
        picture=(width, height),
        flip=row[FLIP] < config.flip,
        jitter=jitter,
        grayscale=row[GREY] < config.grayscale_p,
        blur=low + row[RADIUS] * (high - low) if row[BLUR] < config.blur_p[group] else None,
        solarize=config.solarize_threshold if row[SOLARIZE] < config.solarize_p[group] else None,
    )


def _factor(operation: int, amount: float, chance: float) -> float:
    """ColorJitter's ranges: hue from -amount to amount, the others from 1 - amount (at least 0) to 1 + amount."""
    if operation == 3:
        return amount * (2 * chance - 1)
    low = max(0.0, 1 - amount)
    return low + chance * (1 + amount - low)


def _draw_box(
    scale: tuple[float, float], ratio: tuple[float, float], width: int, height: int, row: list[float]
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params, from uniform numbers: area uniform, ratio log-uniform."""
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    area = width * height
    for k in range(0, POSITION, 2):
        target = area * (scale[0] + row[k] * (scale[1] - scale[0]))
        aspect = math.exp(log_low + row[k + 1] * (log_high - log_low))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(row[POSITION] * (width - w + 1)), int(row[POSITION + 1] * (height - h + 1)), w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    # A picture one pixel wide and taller than its ratio allows rounds to a box that is larger than itself.
    w, h = min(max(w, 1), width), min(max(h, 1), height)
    return (width - w) // 2, (height - h) // 2, w, h


def make_views(image: Image.Image, views: Sequence[View], config: CropsConfig) -> list[np.ndarray]:
    """Apply the decisions to an RGB picture: one contiguous uint8 array [S, S, 3] per view, in their order."""
    if image.mode != "RGB":
        raise ValueError(f"crops need a picture in mode RGB, not {image.mode!r}: read it with images.read_image")
    prepare, apply = BACK_ENDS[config.back_end]()
    source = prepare(image)
    return [apply(source, view) for view in views]


def view_sizes(config: CropsConfig, count: int | None = None) -> list[int]:
    """Pixels of the sides of a picture's views, or of its first `count`."""
    return ([config.global_size] * 2 + [config.local_size] * config.locals)[:count]


def at_least(config: CropsConfig) -> tuple[int, int] | None:
    """The smallest (width, height) a picture may be decoded to for these crops; None: only its full size will do.

    A box of area share s and ratio r or more in a picture whose sides are both at least n has sides of at least
    n sqrt(s r), so DECODING_GAP times the view remains. `exact` wants the full size: PIL's filter sees every pixel.
    Draw the views for the full size all the same: they then are those of a full decode.
    """
    if config.back_end == "exact":
        return None
    narrowest = min(config.ratio[0], 1 / config.ratio[1])
    sides = [config.global_size / math.sqrt(config.global_scale[0] * narrowest)]
    if config.locals:
        sides.append(config.local_size / math.sqrt(config.local_scale[0] * narrowest))
    side = math.ceil(DECODING_GAP * max(sides))
    return side, side
