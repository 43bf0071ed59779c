"""How tasks draw what a tower made of a unit: small, and the same for every tower."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dino_tower.eval.datasets.base import Item
from dino_tower.eval.tasks.segmentation import SHOWN, drawn, small
from dino_tower.pictures import sheet

RIGHT, WRONG, PLAIN = (0, 158, 115), (213, 94, 0), (200, 200, 200)  # told apart by the colour-blind, too
THUMB = 112  # pixels
LINES = 24  # matches that are drawn


def overlay(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """Objects (ids above 0 in a mask [H, W]) as colours over the picture."""
    colours = drawn(np.where(mask > 255, mask % 200 + 1, mask).astype(np.uint8))
    inside = np.asarray(drawn(np.minimum(mask, 1).astype(np.uint8))) != np.asarray(drawn(np.zeros_like(mask, np.uint8)))
    under = np.asarray(picture.resize(colours.size, Image.Resampling.BICUBIC), np.float32)
    cover = 0.6 * inside.any(-1, keepdims=True)
    return Image.fromarray((under * (1 - cover) + np.asarray(colours, np.float32) * cover).astype(np.uint8))


def matches(
    first: Image.Image, second: Image.Image, points: np.ndarray, found: np.ndarray, good: Sequence[bool]
) -> Image.Image:
    """Two pictures side by side; a line from each point [K, 2] of the first to where it was found in the second, as
    shares of their width and height. At most LINES of them, evenly spread."""
    left, right = small(first), small(second)
    gap = 6
    whole = Image.new("RGB", (left.width + gap + right.width, max(left.height, right.height)), (255, 255, 255))
    whole.paste(left, (0, 0))
    whole.paste(right, (left.width + gap, 0))
    draw = ImageDraw.Draw(whole)
    for i in np.unique(np.linspace(0, len(points) - 1, min(LINES, len(points))).astype(int)).tolist():
        x, y = points[i][0] * left.width, points[i][1] * left.height
        to_x, to_y = left.width + gap + found[i][0] * right.width, found[i][1] * right.height
        ink = RIGHT if good[i] else WRONG
        draw.line((x, y, to_x, to_y), fill=ink, width=1)
        for a, b in ((x, y), (to_x, to_y)):
            draw.ellipse((a - 3, b - 3, a + 3, b + 3), fill=ink, outline=(255, 255, 255))
    return whole


def found_pictures(items: Sequence[Item], good: Sequence[bool | None]) -> Image.Image:
    """Thumbnails in a row, the frame says right, wrong or (None) neither."""
    thumbs = []
    for item, right in zip(items, good, strict=True):
        picture = item.image()
        picture.thumbnail((THUMB, THUMB), Image.Resampling.BICUBIC)
        ink = PLAIN if right is None else RIGHT if right else WRONG
        thumbs.append(ImageOps.expand(picture, 4, ink))
    return sheet([thumbs], gap=4) if thumbs else card(["nothing"])


def card(lines: Sequence[str], good: Sequence[bool | None] | None = None) -> Image.Image:
    """Words, one entry a paragraph; a bar before each says right or wrong."""
    font = ImageFont.load_default(13)
    parts = [textwrap.wrap(line, 34) or [""] for line in lines]
    height = sum(16 * len(part) + 8 for part in parts) + 6
    picture = Image.new("RGB", (SHOWN, height), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    y = 6
    for part, right in zip(parts, good or [None] * len(parts), strict=True):
        ink = PLAIN if right is None else RIGHT if right else WRONG
        draw.rectangle((0, y, 3, y + 16 * len(part)), fill=ink)
        for line in part:
            draw.text((10, y), line, fill=(30, 30, 30), font=font)
            y += 16
        y += 8
    return picture
