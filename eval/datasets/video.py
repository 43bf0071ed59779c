"""DAVIS 2016 and 2017: sequences of frames with the objects' masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.datasets.reading import all_labelled, images_in, own_list, read_lines
from dino_tower.label_pictures import read_stored

LISTS = ("2017", "2016", "480p", "")  # folders of ImageSets, in this order


@dataclass(frozen=True)
class ObjectsFile:
    """A frame's objects; `single`: one object, stored as 255 (2016) or 1."""

    path: Path
    single: bool

    def __call__(self) -> np.ndarray:
        """uint8 [H, W]: 0 background, i = object i. Raises ConfigError."""
        stored = read_stored(self.path)
        if stored.ndim == 3:  # some frames of 2016 are grey saved as RGB
            if (stored[..., :3] != stored[..., :1]).any():
                raise ConfigError(f"{self.path}: a mask in colours; object numbers need a palette or grey")
            stored = stored[..., 0]
        return (stored > 0).astype(np.uint8) if self.single else stored


def open_davis(root: Path, name: str, split: str) -> Dataset:
    """One item a sequence, its `frames` with `instances()`; the first frame's objects are what is followed.

    Lists: ImageSets/2017 (several objects), else ImageSets/2016 or 480p, else ImageSets itself (one object, if no frame
    at the beginning of a sequence holds several). "test" is val.
    """
    sets = root / "ImageSets"
    folder = next((sets / one for one in LISTS if any((sets / one).glob("*.txt"))), sets)
    chosen = own_list(folder, "val" if split == "test" else split)
    names = list(dict.fromkeys(_sequence(line) for line in read_lines(chosen)))
    items = []
    for one in names:
        frames = images_in(root / "JPEGImages" / "480p" / one)
        masks = [root / "Annotations" / "480p" / one / f"{path.stem}.png" for path in frames]
        missing = [f"{one}/{path.stem}" for path, mask in zip(frames, masks, strict=True) if not mask.is_file()]
        all_labelled(name, map(str, frames), missing, "mask in Annotations/480p")
        if len(frames) < 2:
            raise ConfigError(f"{name}: sequence {one!r} has {len(frames)} frame; needs two or more")
        single = folder.name != "2017" and not _several(masks[0])
        parts = tuple(
            Item(f"{one}/{path.stem}", path, instance_reader=ObjectsFile(mask, single))
            for path, mask in zip(frames, masks, strict=True)
        )
        items.append(Item(one, parts[0].payload, frames=parts))
    source = chosen.relative_to(root).as_posix()
    return Dataset(name, "davis", split, source, items, frozenset({"video"}))


def _several(path: Path) -> bool:
    return len(np.unique(read_stored(path))) > 2


def _sequence(line: str) -> str:
    """ "blackswan", or 2016's "/JPEGImages/480p/blackswan/00000.jpg /Annotations/480p/blackswan/00000.png"."""
    first = line.split()[0]
    return Path(first).parent.name if Path(first).suffix else first
