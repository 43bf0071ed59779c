"""The exact crops back end: PIL and torchvision semantics, bit for bit what the published recipes compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

if TYPE_CHECKING:
    from dino_tower.pretrain.crops.views import View


def exact_source(image: Image.Image) -> Image.Image:
    """What `exact_view` cuts from: the picture itself."""
    return image


def exact_view(image: Image.Image, view: View) -> np.ndarray:
    """One view of an RGB picture, uint8 [S, S, 3]."""
    left, top, width, height = view.box
    if image.size != view.picture:
        raise ValueError(f"exact crops need the picture at its full size {view.picture}, not {image.size}")
    out = image.crop((left, top, left + width, top + height))
    out = out.resize((view.size, view.size), Image.Resampling.BICUBIC)
    if view.flip:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, factor in view.jitter or ():
        out = ADJUSTMENTS[name](out, factor)
    if view.grayscale:
        out = out.convert("L").convert("RGB")
    if view.blur is not None:
        out = out.filter(ImageFilter.GaussianBlur(view.blur))
    if view.solarize is not None:
        out = ImageOps.solarize(out, view.solarize)
    return np.array(out)


def hue(image: Image.Image, factor: float) -> Image.Image:
    """torchvision's adjust_hue: turn H of the uint8 HSV picture by `factor` of the circle, wrapping around."""
    h, s, v = image.convert("HSV").split()
    turned = np.asarray(h) + np.int32(factor * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB")


ADJUSTMENTS = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": hue,
}
