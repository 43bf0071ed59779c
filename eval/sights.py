"""A few pictures' patch features, small enough for the report, so that towers can be looked through side by side.

Kept at equal tokens: the grids are then the same for every tower, and one chosen patch is the same place in all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dino_tower.checkpoint import read_json, replace_text
from dino_tower.errors import ConfigError
from dino_tower.eval.cache import key_of
from dino_tower.eval.datasets import Dataset
from dino_tower.eval.view import View
from dino_tower.explorer.features import pack

PICTURES = 6
SIDE = 360  # pixels of the longer side of a picture
INDEX = "index.json"
BYTES = 600_000  # of one tower's features


class Sights(NamedTuple):
    """codes: int8 [P, h, w, k]; a patch's features are codes * scales [k]."""

    codes: np.ndarray
    scales: np.ndarray


def folder_of(output: Path, data: str) -> Path:
    """Where the sights of one data set are."""
    return output / "sights" / key_of({"data": data})[:12]


def write_sights(output: Path, view: View, data: Dataset, tower: str) -> None:
    """The pictures (once, and again where they are others than before) and this tower's features of them."""
    folder = folder_of(output, data.name)
    folder.mkdir(parents=True, exist_ok=True)
    places = np.unique(np.linspace(0, len(data) - 1, min(PICTURES, len(data))).round().astype(int)).tolist()
    index, facts = folder / INDEX, {"data": data.name, "ids": [data[place].id for place in places]}
    if not index.is_file() or read_json(index) != facts:
        for other in folder.glob("*.npz"):  # of towers whose pictures were others
            other.unlink()
        for number, place in enumerate(places):
            picture = data[place].image()
            picture.thumbnail((SIDE, SIDE))
            picture.save(folder / f"{number}.jpg", quality=88)
        replace_text(index, json.dumps(facts) + "\n")
    rows = view.rows(data)
    packed = pack([rows[place] for place in places], most_bytes=BYTES)
    temporary = folder / f".{key_of({'tower': tower})[:12]}.npz"
    np.savez(temporary, codes=np.stack(packed.codes), scales=packed.scales, tower=np.array(tower))
    temporary.rename(folder / f"{key_of({'tower': tower})[:12]}.npz")


def read_sights(output: Path, data: str) -> tuple[list[str], dict[str, Sights]]:
    """(ids of the pictures, {tower: sights}); nothing where none were kept. Raises ConfigError for a damaged file."""
    folder = folder_of(output, data)
    if not (folder / INDEX).is_file():
        return [], {}
    try:
        facts: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        found = {}
        for file in sorted(folder.glob("*.npz")):
            with np.load(file, allow_pickle=False) as arrays:
                found[str(arrays["tower"])] = Sights(arrays["codes"], arrays["scales"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: damaged ({type(error).__name__}); remove it") from None
    return list(facts["ids"]), found
