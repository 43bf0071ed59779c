"""The same output directory a second time: what is taken over, and what is not because something has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from dino_tower.cli import main
from dino_tower.eval.results import read_results
from dino_tower.eval.sights import folder_of, read_sights
from dino_tower.eval.truths import truth_folder

TOWER = "builtin:scenes"
SMALL = ["--columns", "tokens", "--tokens", "4", "--seeds", "1", "--layers", "last", "--floors", "none"]


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def mask(path: Path, left: int, wide: int = 20) -> None:
    """A thing on the ground."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((32, 40), np.uint8)
    values[8:24, left : left + wide] = 1
    Image.fromarray(values).save(path)


def with_masks(root: Path, each: int) -> str:
    for s, split in enumerate(("train", "val")):
        for i in range(each):
            photo(root / "images" / split / f"{i}.png", 50 * s + i)
            mask(root / "masks" / split / f"{i}.png", left=2)
    (root / "classes.txt").write_text("ground\nthing\n")
    return str(root)


def run(folder: Path, data: str, suite: str, *words: str) -> None:
    places = ["--output", str(folder / "out"), "--cache", str(folder / "cache")]
    assert main(["eval", TOWER, "--data", data, "--suite", suite, *places, *SMALL, *words]) == 0


def headline(folder: Path) -> dict[str, object]:
    return read_results(folder / "out")["scores"][0]


def test_corrected_masks_are_scored_again(tmp_path: Path) -> None:
    """The key of a score held the pictures only: after wrong masks were corrected the old score came back."""
    data = with_masks(tmp_path / "data", each=3)
    run(tmp_path, data, "in-context")
    before, truth = headline(tmp_path), truth_folder(tmp_path / "out", data, "in-context") / "000-truth.png"
    drawn = truth.read_bytes()
    for i in range(3):
        mask(tmp_path / "data" / "masks" / "val" / f"{i}.png", left=12, wide=9)
    run(tmp_path, data, "in-context")
    assert headline(tmp_path)["entry"] != before["entry"]
    assert headline(tmp_path)["score"] != before["score"]
    assert truth.read_bytes() != drawn  # what it stands beside on the page
    again = headline(tmp_path)
    run(tmp_path, data, "in-context")
    assert headline(tmp_path) == again  # nothing changed: read, not computed


def test_what_could_not_be_done_is_tried_again(tmp_path: Path) -> None:
    """ "n/a" was kept like a score, and came back after its reason was gone."""
    data = with_masks(tmp_path / "data", each=12)
    other = tmp_path / "data" / "masks" / "train" / "10.png"  # not among those that are looked at first
    whole = other.read_bytes()
    stat = other.stat()
    other.write_bytes(b"\0" * len(whole))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(tmp_path, data, "in-context")
    assert "10.png" in str(headline(tmp_path)["reason"])
    other.write_bytes(whole)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(tmp_path, data, "in-context")
    assert headline(tmp_path)["score"] is not None


def test_another_limit_shows_other_pictures(tmp_path: Path) -> None:
    """The explorer kept the first limit's pictures under the second's features, and pages the first one's truths."""
    data, out = with_masks(tmp_path / "data", each=9), tmp_path / "out"
    units = truth_folder(out, data, "in-context") / "units.json"
    seen = {}
    for limit in ("9", "4", "9"):
        run(tmp_path, data, "in-context", "--limit", limit)
        ids, sights = read_sights(out, data)
        assert [len(one.codes) for one in sights.values()] == [len(ids)]
        shown = [(folder_of(out, data) / f"{i}.jpg").read_bytes() for i in range(len(ids))]
        found = ids, shown, json.loads(units.read_text())["units"]
        assert seen.setdefault(limit, found) == found  # the third time the scores are read from disk
    assert seen["9"][0] == ["0", "2", "3", "5", "6", "8"] and seen["4"][0] == ["0", "3", "5", "8"]
    assert [len(seen[limit][2]) for limit in ("9", "4")] == [9, 4]
