"""Masks out of COCO's annotations: polygons, run lengths and panoptic pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import VOID
from dino_tower.label_pictures import read_stored


def decode_runs(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """Run lengths -> bool [H, W]: zeros first, columns first (pycocotools `rleFrString`, `rleDecode`).

    A string holds 5 bits a character, lowest first; from the third run on the difference to the run before the last.
    Raises ConfigError when the runs do not fill the picture.
    """
    runs: list[int] = []
    if isinstance(counts, str):
        place = 0
        while place < len(counts):
            value, shift, more = 0, 0, True
            while more:
                if place >= len(counts):
                    raise ConfigError("run lengths: the string ends inside a number")
                bits = ord(counts[place]) - 48
                value |= (bits & 31) << shift
                more, shift, place = bool(bits & 32), shift + 5, place + 1
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
    else:
        runs = [int(run) for run in counts]
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ConfigError(f"run lengths: they fill {sum(runs)} of {height} x {width} pixels")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def region(segmentation: Any, height: int, width: int) -> np.ndarray:
    """One object's polygons [[x, y, x, y, ...], ...] or run lengths {"counts", "size"} -> bool [H, W].

    A pixel belongs to a polygon that holds its centre: at outlines one more or less than in pycocotools, which rounds
    the outline to fifths of a pixel. Several polygons are joined.
    """
    if isinstance(segmentation, Mapping):
        if list(segmentation.get("size", [])) != [height, width] or "counts" not in segmentation:
            raise ConfigError(f"run lengths of size {segmentation.get('size')} for a picture of {[height, width]}")
        return decode_runs(segmentation["counts"], height, width)
    drawn = np.zeros((height, width), bool)
    for polygon in segmentation:
        points = np.asarray(polygon, np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise ConfigError("a polygon needs x, y of three points or more")
        drawn |= _inside(points.reshape(-1, 2), height, width)
    return drawn


def _inside(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [H, W]: the pixels whose centre the polygon [N, 2] goes round an odd number of times (even-odd rule)."""
    (x0, y0), (x1, y1) = points.T[..., None], np.roll(points, -1, axis=0).T[..., None]
    rows = np.arange(height) + 0.5
    crossed = (y0 <= rows) != (y1 <= rows)  # [N, H]: the edge crosses the middle of the row
    edge, row = crossed.nonzero()
    at = x0[edge, 0] + (rows[row] - y0[edge, 0]) * (x1 - x0)[edge, 0] / (y1 - y0)[edge, 0]
    first = np.clip(np.ceil(at - 0.5), 0, width).astype(int)  # the first pixel whose centre lies right of the crossing
    turns = np.zeros((height, width + 1), np.int64)
    np.add.at(turns, (row, first), 1)
    return (turns.cumsum(1)[:, :width] % 2).astype(bool)


@dataclass(frozen=True)
class DrawnObjects:
    """A mask drawn from annotations, larger objects first so that small ones stay visible; crowds are void.

    `objects`: (class id, area, is a crowd, segmentation). With `numbered`, object i gets number i + 1 (255 is passed
    over) instead of its class id.
    """

    where: str
    height: int
    width: int
    objects: tuple[tuple[int, float, bool, Any], ...]
    numbered: bool = False

    def __call__(self) -> np.ndarray:
        """uint8 (class ids) or uint16 (numbers) [H, W]; 0 background. Raises ConfigError."""
        mask = np.zeros((self.height, self.width), np.uint16 if self.numbered else np.uint8)
        for place in sorted(range(len(self.objects)), key=lambda i: (-self.objects[i][2], -self.objects[i][1])):
            label, _, crowd, segmentation = self.objects[place]
            value = number(place) if self.numbered else label
            try:
                mask[region(segmentation, self.height, self.width)] = VOID if crowd else value
            except (ConfigError, TypeError, ValueError) as error:
                raise ConfigError(f"{self.where}: {error}") from None
        return mask


def number(place: int) -> int:
    """The number of object `place`: from 1 on, without 255, which is void."""
    return place + 1 + (place + 1 >= VOID)


@dataclass(frozen=True)
class PanopticFile:
    """A panoptic picture: segment id = R + 256 G + 65536 B. `segments`: id -> class id, VOID for crowds.

    With `numbered`, segments get their number (see `number`) instead; pixels of id 0 are void.
    """

    path: Path
    segments: Mapping[int, int]
    numbered: bool = False

    def __call__(self) -> np.ndarray:
        """uint8 (class ids) or uint16 (numbers) [H, W]. Raises ConfigError."""
        stored = read_stored(self.path)
        if stored.ndim != 3 or stored.shape[2] < 3:
            raise ConfigError(f"{self.path}: a panoptic picture is RGB, this one has one channel")
        ids = (stored[..., :3].astype(np.uint32) * np.array([1, 256, 65536], np.uint32)).sum(-1)
        found, places = np.unique(ids, return_inverse=True)
        order = {one: number(place) for place, one in enumerate(self.segments)}
        values = np.full(len(found), VOID, np.uint16 if self.numbered else np.uint8)
        for place, one in enumerate(found.tolist()):
            if one == 0:
                continue
            if one not in self.segments:
                raise ConfigError(f"{self.path}: segment {one} is not in segments_info")
            crowd = self.segments[one] == VOID
            values[place] = order[one] if self.numbered and not crowd else self.segments[one]
        return values[places.reshape(ids.shape)]
