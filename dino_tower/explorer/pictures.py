"""The PNGs of `dino-tower show`, and the maps that its page draws, computed once for both.

Legend: h x w = patch grid, D = feature width, heads = attention heads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.attention import mass_mask
from dino_tower.pictures import (
    attention_light,
    attention_picture,
    foreground,
    foreground_picture,
    heads_picture,
    pca_basis,
    pca_colours,
    pca_picture,
    sheet,
    similarity_picture,
)

KEEP = 0.6  # the share of the attention that is outlined
CELL, LARGE = 260, 480  # pixels of the longer side in a sheet, on its own
COMPRESSION = 3  # of PNGs: the default takes three times as long and saves a tenth


class Sight(NamedTuple):
    """One picture and what the tower says about it."""

    name: str
    image: Image.Image
    patches: Tensor  # [h, w, D]
    attention: Tensor | None  # [heads, h, w]
    looks: str = "class token"  # what attends


class Maps(NamedTuple):
    """What is drawn over one picture."""

    colours: np.ndarray  # uint8 [h, w, 3]
    foreground: Tensor  # [h, w], above 0 in the foreground, 1 = the whole range
    light: np.ndarray | None  # uint8 [1 + heads, h, w]: the mean of the heads, then each
    outlined: np.ndarray | None  # bool, same shape: the smallest set that holds KEEP of the attention


def write_pictures(folder: Path, sights: Sequence[Sight]) -> tuple[list[Maps], tuple[int, int, int]]:
    """Write the PNGs into `folder`; returns the maps and the patch (picture, row, column) that is chosen first."""
    basis = pca_basis([sight.patches for sight in sights])
    fronts = foreground([sight.patches for sight in sights], basis)
    views = [
        Maps(pca_colours(sight.patches, basis), front, *_attention_maps(sight.attention))
        for sight, front in zip(sights, fronts, strict=True)
    ]
    row, column = first_patch(sights[0], fronts[0])
    query = sights[0].patches[row, column]
    overview = []
    for number, (sight, front) in enumerate(zip(sights, fronts, strict=True)):
        ours = None if sight is sights[0] else query
        drawn = {"similarity": similarity_picture(sight.image, sight.patches, (row, column), LARGE, ours)}
        if sight.attention is not None:
            drawn["attention"] = attention_picture(sight.image, sight.attention, KEEP, LARGE)
            drawn["heads"] = heads_picture(sight.image, sight.attention, KEEP, CELL)
        drawn["pca"] = pca_picture(sight.patches, basis, LARGE)
        drawn["foreground"] = foreground_picture(sight.image, front, LARGE)
        stem = f"{number + 1:02d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', sight.name).strip('-')[:60]}".rstrip("-")
        for name, picture in drawn.items():
            picture.save(folder / f"{stem}-{name}.png", compress_level=COMPRESSION)
        cells = [sight.image, *(picture for name, picture in drawn.items() if name != "heads")]
        overview.append([cell.resize(_cell(drawn["pca"].size), Image.Resampling.BICUBIC) for cell in cells])
    titles = ["picture", "like the ringed patch", *(name for name in drawn if name not in ("similarity", "heads"))]
    sheet(overview, titles).save(folder / "overview.png", compress_level=COMPRESSION)
    return views, (0, row, column)


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    scale = CELL / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def first_patch(sight: Sight, front: Tensor) -> tuple[int, int]:
    """Where the page starts: the patch of the foreground that the tower attends to most, or the most foreground one."""
    score = front
    if sight.attention is not None:
        mean = sight.attention.mean(0)
        score = torch.where(front > 0, mean, -1.0) if bool((front > 0).any()) else mean
    at = int(score.argmax())
    return at // score.shape[1], at % score.shape[1]


def _attention_maps(attention: Tensor | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    if attention is None:
        return None, None
    maps = torch.cat([attention.mean(0, keepdim=True), attention])
    light = torch.stack([attention_light(one) for one in maps])
    return (light * 255).round().byte().numpy(), mass_mask(maps, KEEP).numpy()
