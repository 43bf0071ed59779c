"""Pictures with depth maps: NYUv2 as it is usually extracted, and people's own pairs of files.

    DenseDepth  nyu2_train/SCENE/N.jpg + N.png (8 bits, 255 is 10 m), nyu2_test/N_colors.png + N_depth.png (mm)
    BTS         {train,test}/SCENE/rgb_N.jpg + sync_depth_N.png (mm), also inside official_splits/
    own         N_rgb.* + N_depth.png, or rgb/N.* + depth/N.png; mm, unless index.json says otherwise

The original nyu_depth_v2_labeled.mat is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.datasets.reading import SAME, all_labelled, by_hash, images_in, nothing_apart, read_json
from dino_tower.label_pictures import in_metres, read_stored

MILLIMETRES = 1000.0
EIGHT_BITS = 25.5  # 255 is 10 m
NYU_CAMERA = (518.857901, 519.469611, 325.582449, 253.736166)  # of its colour pictures, `camera_params.m`
# end of the picture's name -> end of its depth map's
ENDINGS = {"_colors": "_depth", "_rgb": "_depth"}
STARTS = {"rgb_": "sync_depth_"}


@dataclass(frozen=True)
class DepthFile:
    """A depth picture; `units` a metre, `invalid` where nothing was measured."""

    path: Path
    units: float
    invalid: int = 0

    def __call__(self) -> np.ndarray:
        """float32 [H, W] metres, 0 where nothing was measured. Raises ConfigError."""
        bits = self.units == EIGHT_BITS
        return in_metres(read_stored(self.path), str(self.path), self.units, self.invalid, eight_bits=bits)


def depth_folder(root: Path, split: str) -> Path | None:
    """The folder of `split`, where splits have folders."""
    for base in (root, root / "official_splits", root / "data"):
        for one in SAME.get(split, (split,)):
            for folder in (base / f"nyu2_{one}", base / one):
                if folder.is_dir():
                    return folder
    return None


def depth_of(picture: Path) -> Path | None:
    """The depth map that belongs to a picture by its name; None for what is no picture of a pair."""
    stem = picture.stem
    for end, other in ENDINGS.items():
        if stem.endswith(end):
            return picture.with_name(f"{stem.removesuffix(end)}{other}.png")
    for start, other in STARTS.items():
        if stem.startswith(start):
            return picture.with_name(f"{other}{stem.removeprefix(start)}.png")
    if picture.parent.name == "rgb":
        return picture.parent.parent / "depth" / f"{stem}.png"
    if "nyu2_train" in picture.parts and picture.suffix.lower() == ".jpg":
        return picture.with_suffix(".png")
    return None


def has_depth(root: Path) -> bool:
    """Whether a picture with its depth map lies in the folders that are read."""
    folders = [folder for split in ("train", "test") if (folder := depth_folder(root, split))]
    names = ("*_colors.png", "*_rgb.*", "rgb_*", "rgb/*")
    found = [next(folder.rglob(name), None) for folder in folders or [root] for name in names]
    return any(one is not None and (d := depth_of(one)) is not None and d.is_file() for one in found) or any(
        (root / base / "nyu2_train").is_dir() for base in ("", "data")
    )


def open_depth(root: Path, name: str, split: str) -> Dataset:
    """One item a picture with a depth map. Without folders of splits: by hash."""
    folder = depth_folder(root, split)
    if folder is None:
        nothing_apart(name, split, lambda one: depth_folder(root, one), f"a folder {split}")
    listed = (root / "index.json").is_file()
    units, cameras = (_units(root / "index.json"), _cameras(root / "index.json")) if listed else ({}, {})
    found = [(path, depth) for path in images_in(folder or root) if (depth := depth_of(path)) is not None]
    if not found:
        raise ConfigError(f"{folder or root}: no picture is named as one with a depth map")
    ids = [path.relative_to(folder or root).with_suffix("").as_posix() for path, _ in found]
    all_labelled(name, ids, [one for one, (_, d) in zip(ids, found, strict=True) if not d.is_file()], "depth map")
    chosen_by, places = folder.name if folder else "", list(range(len(ids)))
    if folder is None:
        places, chosen_by = by_hash(name, ids, split)
    items = []
    for place in places:
        path, depth = found[place]
        plain = path.suffix.lower() == ".jpg" and "nyu2_train" in path.parts
        scale, invalid = units.get(ids[place].removesuffix("_rgb"), (EIGHT_BITS if plain else MILLIMETRES, 0))
        nyu = NYU_CAMERA if "nyu2_" in str(folder) or depth.name.startswith("sync_depth_") else None
        camera = cameras.get(ids[place].removesuffix("_rgb"), nyu)
        items.append(Item(ids[place], path, depth_reader=DepthFile(depth, scale, invalid), camera=camera))
    has = {"depth"} | ({"camera"} if all(item.camera for item in items) else set())
    return Dataset(name, "depth", split, chosen_by, items, frozenset(has))


def _units(path: Path) -> dict[str, tuple[float, int]]:
    """index.json: rows of id, depth_units_per_metre, and invalid (0)."""
    units = {}
    for row in read_json(path):
        scale = row.get("depth_units_per_metre") if isinstance(row, dict) else None
        if not isinstance(scale, int | float) or not scale > 0 or "id" not in row:
            raise ConfigError(f"{path}: every row needs an id and depth_units_per_metre above 0, not {row!r:.80}")
        units[str(row["id"])] = (float(scale), int(row.get("invalid", 0)))
    return units


def _cameras(path: Path) -> dict[str, tuple[float, float, float, float]]:
    """index.json: "camera" of a row, [fx, fy, cx, cy] in pixels, where it is known: surface normals need it."""
    cameras = {}
    for row in read_json(path):
        if "camera" not in row:
            continue
        given = row["camera"]
        numbers = isinstance(given, list) and len(given) == 4 and all(isinstance(one, int | float) for one in given)
        if not numbers or min(given[:2]) <= 0:
            raise ConfigError(f"{path}: camera of {row['id']!r} is {given!r:.80}; needs [fx, fy, cx, cy] in pixels")
        cameras[str(row["id"])] = (float(given[0]), float(given[1]), float(given[2]), float(given[3]))
    return cameras
