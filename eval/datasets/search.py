"""Queries and what they should find: revisited Oxford and Paris, Copydays."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Item, NoSplit, Relevance
from dino_tower.eval.datasets.reading import image_named, images_in, read_json
from dino_tower.images import read_image

CONVERT = (
    "python -c \"import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb')), "
    "open(sys.argv[1][:-3] + 'json', 'w'), default=lambda x: x.tolist())\""
)


def truth_file(root: Path) -> Path | None:
    """gnd_*.json, or the .pkl it is to be made from."""
    return next(iter([*sorted(root.glob("gnd_*.json")), *sorted(root.glob("gnd_*.pkl"))]), None)


def open_revisited(root: Path, name: str, split: str) -> Dataset:
    """jpg/ and gnd_roxford5k.json: imlist, qimlist, and of each query bbx, easy, hard, junk. Queries are cut to it.

    The published file is a pickle, which could run anything when opened: it is never read here. Convert it once, if you
    trust where you got it; the error names the command.
    """
    _only_test(name, split)
    path = truth_file(root)
    if path is None:
        raise ConfigError(f"{name}: no gnd_*.json")
    if path.suffix != ".json":
        raise ConfigError(f"{path}: a pickle can run code and is not opened; if you trust it: {CONVERT} {path}")
    data = read_json(path)
    if not isinstance(data, dict) or any(not isinstance(data.get(key), list) for key in ("imlist", "qimlist", "gnd")):
        raise ConfigError(f"{path}: needs the lists imlist, qimlist and gnd")
    if len(data["gnd"]) != len(data["qimlist"]):
        raise ConfigError(f"{path}: {len(data['qimlist'])} queries, but truth for {len(data['gnd'])}")
    items = [Item(one, image_named(root / "jpg", one)) for one in data["imlist"]]
    for one, truth in zip(data["qimlist"], data["gnd"], strict=True):
        lists = {kind: tuple(int(place) for place in truth.get(kind, ())) for kind in ("easy", "hard", "junk")}
        wrong = [place for places in lists.values() for place in places if not 0 <= place < len(items)]
        if wrong:
            raise ConfigError(f"{path}: query {one!r} names image {wrong[0]} of {len(data['imlist'])}")
        corners = tuple(float(value) for value in truth.get("bbx", ()))
        if len(corners) != 4:
            raise ConfigError(f"{path}: query {one!r} has no bbx of four numbers")
        cut = partial(_cut, image_named(root / "jpg", one), corners)
        items.append(Item(f"query {one}", cut, query=Relevance(**lists)))
    return Dataset(name, "revisited", "test", path.name, items, frozenset({"queries"}))


def _cut(path: Path, corners: tuple[float, ...]) -> Image.Image:
    left, top, right, bottom = corners
    return read_image(path).crop((int(left), int(top), int(right), int(bottom)))


def open_copydays(root: Path, name: str, split: str) -> Dataset:
    """original/ is searched for the originals of strong/: a copy's number differs in its last two digits.

    "train" is the pictures of train/, if there is such a folder: others, that whitening is learned from.
    """
    if split == "train" and (root / "train").is_dir():
        others = [Item(path.relative_to(root).as_posix(), path) for path in images_in(root / "train")]
        return Dataset(name, "copydays", "train", "folder", others, frozenset())
    _only_test(name, split)
    originals = images_in(root / "original")
    place = {path.stem[:-2]: index for index, path in enumerate(originals)}
    items = [Item(f"original/{path.stem}", path) for path in originals]
    for path in images_in(root / "strong"):
        if path.stem[:-2] not in place:
            raise ConfigError(f"{name}: strong/{path.name} has no original {path.stem[:-2]}00")
        items.append(Item(f"strong/{path.stem}", path, query=Relevance((place[path.stem[:-2]],))))
    return Dataset(name, "copydays", "test", "strong against original", items, frozenset({"copies"}))


def _only_test(name: str, split: str) -> None:
    if split != "test":
        raise NoSplit(f"{name}: no split {split!r}; a retrieval set has only test")
