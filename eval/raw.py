"""The floor below all towers: pixels themselves, in the shape of features.

A patch is its 4 x 4 mean colours and where it lies; a picture is its 16 x 16 mean colours. What a probe reaches with
these it owes to colour and position, not to any tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.images import read_image
from dino_tower.tokens import Tokens
from dino_tower.tower import Size

PATCH = 16
CELLS = 4  # colours along a side of a patch
WHOLE = 16  # colours along a side of a picture
VERSION = "raw-pixels-1"


class RawPixels:
    """Answers like a `Tower`: `pixels` in 0..1, patches [B, h, w, 50] (48 colours, then x and y), cls [B, 768]."""

    name, family = "raw pixels", "raw"
    patch, width, depth, native = PATCH, 3 * CELLS**2 + 2, 1, None
    device, dtype, has_text = torch.device("cpu"), torch.float32, False

    def pixels(self, images: Sequence[Image.Image | str | Path], size: Size = None) -> Tensor:
        """[B, 3, H, W] in 0..1; without a size the whole picture at 224 x 224."""
        if size == "native":
            raise ConfigError("raw pixels: give a size")
        height, width = size or (224, 224)
        target = (max(1, round(width / PATCH)) * PATCH, max(1, round(height / PATCH)) * PATCH)
        found = []
        for image in images:
            picture = read_image(image).resize(target, Image.Resampling.BICUBIC)
            data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            found.append(data.view(target[1], target[0], 3).permute(2, 0, 1))
        return torch.stack(found).float() / 255

    def layers(self, images: Tensor, which: int | Sequence[int], size: Size = None, norm: bool = True) -> list[Tokens]:
        """The same for every layer asked for."""
        batch, _, height, width = images.shape
        h, w = height // PATCH, width // PATCH
        cells = F.adaptive_avg_pool2d(images, (h * CELLS, w * CELLS))
        colours = cells.view(batch, 3, h, CELLS, w, CELLS).permute(0, 2, 4, 1, 3, 5).reshape(batch, h, w, -1)
        y = torch.linspace(0, 1, h)[:, None].expand(h, w)
        x = torch.linspace(0, 1, w)[None].expand(h, w)
        place = torch.stack([x, y], -1).expand(batch, h, w, 2)
        whole = F.adaptive_avg_pool2d(images, WHOLE).flatten(1)
        tokens = Tokens(torch.cat([colours, place], -1), whole)
        return [tokens] * (which if isinstance(which, int) else len(which))

    def attention(self, images: Tensor, size: Size = None) -> Tensor:
        """ConfigError: pixels have none."""
        raise ConfigError("raw pixels have no attention")

    def keys(self, images: Tensor, size: Size = None) -> Tensor:
        """Their patches stand for keys: [B, 1, h, w, 50]."""
        return self.layers(images, 1)[0].patches[:, None]

    def embed(self, images: Tensor, size: Size = None) -> Tensor:
        """ConfigError: pixels have no text encoder."""
        raise ConfigError("raw pixels have no text encoder")

    def text(self, texts: Sequence[str]) -> Tensor:
        """ConfigError: pixels have no text encoder."""
        raise ConfigError("raw pixels have no text encoder")
