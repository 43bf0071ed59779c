"""The fast crops back end: the same decisions as `exact`, from a uint8 array with SIMD libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from dino_tower.pretrain.crops import View

LUMA = (0.299, 0.587, 0.114)  # PIL's greyscale


def fast_source(image: Image.Image) -> np.ndarray:
    """What `fast_view` cuts from: the picture as uint8 [H, W, 3]."""
    return np.array(image)


def fast_view(picture: np.ndarray, view: View) -> np.ndarray:
    """One view of a picture uint8 [H, W, 3] (perhaps decoded at a reduced scale), uint8 [S, S, 3]."""
    out = cut(picture, view)
    for name, factor in view.jitter or ():
        out = ADJUSTMENTS[name](out, factor)
    if view.grayscale:
        out = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if view.blur is not None:
        out = cv2.GaussianBlur(out, (0, 0), view.blur, borderType=cv2.BORDER_REPLICATE)
    if view.solarize is not None:
        out = np.where(out < view.solarize, out, 255 - out)
    return out


def cut(picture: np.ndarray, view: View) -> np.ndarray:
    """Crop, resize (bicubic, antialiased: torch's uint8 kernel computes as PIL's does) and flip."""
    left, top, width, height = view.box
    full_width, full_height = view.picture
    if picture.shape[1] != full_width or picture.shape[0] != full_height:
        x, y = picture.shape[1] / full_width, picture.shape[0] / full_height
        left, top = int(left * x), int(top * y)
        width, height = max(1, round(width * x)), max(1, round(height * y))
    crop = torch.from_numpy(picture[top : top + height, left : left + width]).permute(2, 0, 1)[None]
    size = (view.size, view.size)
    out = torch.nn.functional.interpolate(crop, size=size, mode="bicubic", antialias=True)
    out = out[0].permute(1, 2, 0).numpy()
    return cv2.flip(out, 1) if view.flip else out


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.convertScaleAbs(image, alpha=factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    means = cv2.mean(image)
    mean = int(sum(weight * channel for weight, channel in zip(LUMA, means, strict=False)) + 0.5)
    table = np.clip(np.arange(256) * factor + mean * (1 - factor), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    grey = np.outer(np.ones(3), LUMA) * (1 - factor)
    return cv2.transform(image, grey + factor * np.eye(3))


def hue(image: np.ndarray, factor: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.int32(factor * 255).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


ADJUSTMENTS = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
