"""COCO's own folders (instances, panoptic, stuff), and people's pictures with one COCO JSON file."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import VOID, Box, Dataset, Item, NoSplit
from dino_tower.eval.datasets.coco_masks import DrawnObjects, PanopticFile
from dino_tower.eval.datasets.reading import (
    MAX_CLASSES,
    SAME,
    MaskFile,
    all_labelled,
    by_hash,
    images_in,
    needed_folder,
    nothing_apart,
    read_json,
    read_lines,
    read_text,
)

JSON_NAMES = ("instances.json", "annotations.json", "_annotations.coco.json", "coco.json")
STUFF_THINGS = 182  # values 0..181 of stuffthingmaps: category id - 1; 11 ids never occur
FIRST_STUFF, OTHER = 92, 183  # in stuff pixelmaps; 183 is "other", all things together


def year_of(root: Path, kind: str, split: str) -> Path:
    """annotations/KIND_{train,val}YEAR.json, the newest year. Raises NoSplit."""
    wanted = "val" if split == "test" else split
    found = sorted((root / "annotations").glob(f"{kind}_{wanted}20*.json"))
    if not found:
        have = ", ".join(sorted(path.name for path in (root / "annotations").glob("*.json"))[:6]) or "none"
        raise NoSplit(f"{root}: no annotations/{kind}_{wanted}2017.json for split {split!r}; files: {have}")
    return found[-1]


def image_folder(root: Path, name: str) -> Path:
    """val2017 beside annotations, or in images/. Raises NoSplit: annotations of both parts come in one file, pictures
    in one each."""
    found = next((folder for folder in (root / "images" / name, root / name) if folder.is_dir()), None)
    if found is None:
        raise NoSplit(f"{root}: no pictures of {name}: neither a folder images/{name} nor {name}")
    return found


def open_coco(root: Path, name: str, split: str) -> Dataset:
    """instances_*.json: boxes, and masks drawn from the polygons (0 background, crowds void); captions where given."""
    chosen = year_of(root, "instances", split)
    part = chosen.stem.removeprefix("instances_")
    captions = chosen.with_name(f"captions_{part}.json")
    return _dataset(name, "coco", split, chosen, image_folder(root, part), captions, None, whole=True)


def open_coco_json(root: Path, name: str, split: str) -> Dataset:
    """Pictures in images/, a split's folder or beside the file, and one COCO JSON. captions.json (COCO's captions) and
    phrases.jsonl (rows of image_id, caption, span, bbox) beside it are read too. The split: folders, a field "split" of
    each image, or by hash."""
    folder = _own_folder(root, split)
    if folder is None:
        nothing_apart(name, split, lambda one: _own_folder(root, one), f"{split}/{JSON_NAMES[0]}")
    chosen = json_in(folder or root)
    if chosen is None:
        raise ConfigError(f"{name}: no {', '.join(JSON_NAMES)} in {root}")
    pictures = chosen.parent / "images" if (chosen.parent / "images").is_dir() else chosen.parent
    beside = chosen.parent
    captions, phrases = beside / "captions.json", beside / "phrases.jsonl"
    return _dataset(name, "coco-json", split, chosen, pictures, captions, phrases, whole=folder is not None,
                    within=f"{folder.name}/" if folder else "")  # fmt: skip


def _own_folder(root: Path, split: str) -> Path | None:
    """The folder of a split, which has a file of its own."""
    return next((root / one for one in SAME.get(split, (split,)) if json_in(root / one)), None)


def json_in(folder: Path) -> Path | None:
    """The COCO JSON file of a folder."""
    return next((folder / one for one in JSON_NAMES if (folder / one).is_file()), None)


def _dataset(
    name: str, kind: str, split: str, chosen: Path, pictures: Path, captions: Path, phrases: Path | None, whole: bool,
    within: str = "",
) -> Dataset:  # fmt: skip
    """Items of one instances file; `whole`: the file is one split; `within`: its folder, for ids that differ from those
    of other splits."""
    data = read_coco(chosen, "images", "annotations", "categories")
    images, source = _split_images(data["images"], split, str(chosen), whole)
    notes = defaultdict(list)
    known = {image["id"] for image in data["images"]}
    for note in data["annotations"]:
        if note.get("image_id") not in known:
            raise ConfigError(
                f"{chosen}: annotation {note.get('id')} is of image {note.get('image_id')}, which is not listed"
            )
        notes[note["image_id"]].append(note)
    drawn = bool(data["annotations"]) and all(note.get("segmentation") for note in data["annotations"])
    names = tuple(str(one["name"]) for one in data["categories"])
    _few_enough(len(names) + drawn, chosen)
    place = {one["id"]: index + drawn for index, one in enumerate(data["categories"])}
    said = _captions(captions) if captions.is_file() else {}
    pointed = _phrases(phrases) if phrases is not None and phrases.is_file() else {}
    missing = [one["file_name"] for one in images if not (pictures / one["file_name"]).is_file()]
    if missing:
        raise ConfigError(
            f"{pictures}: {len(missing)} of {len(images)} images of {chosen.name} are missing, the first: {missing[0]}"
        )
    items = []
    for image in images:
        own = notes[image["id"]]
        boxes = tuple(box for note in own if (box := _box(note, place, str(chosen))) is not None)
        objects = tuple(
            (place[note["category_id"]], float(note.get("area", 0)), bool(note.get("iscrowd")), note["segmentation"])
            for note in own if drawn
        )  # fmt: skip
        shape = (f"{chosen}: {image['file_name']}", int(image.get("height", 0)), int(image.get("width", 0)), objects)
        items.append(
            Item(
                within + _id(image),
                pictures / image["file_name"],
                boxes=boxes,
                mask_reader=DrawnObjects(*shape) if drawn else None,
                instance_reader=DrawnObjects(*shape, numbered=True) if drawn else None,
                captions=tuple(said.get(image["id"], ())),
                phrases=tuple(pointed.get(image["id"], ())),
            )
        )
    has = {"boxes"} | ({"masks", "instances"} if drawn else set())
    has |= {one for one in ("captions", "phrases") if any(getattr(item, one) for item in items)}
    return Dataset(name, kind, split, source, items, frozenset(has), regions=("background", *names) if drawn else names)


def _id(image: dict[str, Any]) -> str:
    """With its folders: numbers start again in each."""
    return Path(image["file_name"]).with_suffix("").as_posix()


def read_coco(path: Path, *keys: str) -> dict[str, Any]:
    """A COCO file with the lists `keys`. Raises ConfigError."""
    data = read_json(path)
    for key in keys:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ConfigError(f"{path}: no list {key!r}; a COCO file has {', '.join(keys)}")
    needs = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": ("image_id",)}
    for key in keys:
        for row in data[key]:
            gone = [field for field in needs.get(key, ()) if not isinstance(row, dict) or field not in row]
            if gone:
                raise ConfigError(f"{path}: one of {key!r} has no {gone[0]!r}")
    if not data.get("images", True):
        raise ConfigError(f"{path}: lists no images")
    return data


def _few_enough(classes: int, path: Path) -> None:
    if classes > MAX_CLASSES:
        raise ConfigError(f"{path}: {classes} classes; masks hold at most {MAX_CLASSES}")


def _split_images(images: list[dict], split: str, where: str, whole: bool) -> tuple[list[dict], str]:
    if whole:
        return images, Path(where).name
    if all("split" in image for image in images):
        have = {str(image["split"]) for image in images}
        wanted = next((one for one in SAME.get(split, (split,)) if one in have), None)
        if wanted is None:
            raise NoSplit(f"{where}: no image of split {split!r}; splits: {', '.join(sorted(have))}")
        return [image for image in images if str(image["split"]) == wanted], f'"split": "{wanted}" of each image'
    places, source = by_hash(where, [str(image["file_name"]) for image in images], split)
    return [images[place] for place in places], source


def _box(note: dict[str, Any], place: dict[Any, int], where: str) -> Box | None:
    """None for a box without area, of which COCO has two."""
    corner: Any = note.get("bbox")
    if note.get("category_id") not in place:
        raise ConfigError(
            f"{where}: annotation {note.get('id')} is of category {note.get('category_id')}, which is not listed"
        )
    numbers = isinstance(corner, list) and len(corner) == 4 and all(isinstance(v, int | float) for v in corner)
    if not numbers or not all(map(math.isfinite, corner)) or min(corner[2:]) < 0:
        raise ConfigError(f"{where}: annotation {note.get('id')}: bbox {corner}; needs x, y, width, height")
    left, top, wide, high = corner
    box = Box((left, top, left + wide, top + high), place[note["category_id"]], bool(note.get("iscrowd")))
    return box if wide and high else None


def _captions(path: Path) -> dict[Any, list[str]]:
    said = defaultdict(list)
    for row in read_coco(path, "annotations")["annotations"]:
        said[row.get("image_id")].append(str(row.get("caption", "")).strip())
    return said


def _phrases(path: Path) -> dict[Any, list]:
    import json

    pointed = defaultdict(list)
    for place, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
            (start, end), (left, top, wide, high) = row["span"], row["bbox"]
            corners = (float(left), float(top), float(left) + float(wide), float(top) + float(high))
            pointed[row["image_id"]].append((row["caption"][start:end], corners))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: line {place} needs image_id, caption, span, bbox: {error}") from None
    return pointed


def open_panoptic(root: Path, name: str, split: str) -> Dataset:
    """panoptic_*.json and its RGB pictures: all things and stuff in the order of "categories"; unlabelled is void."""
    chosen = year_of(root, "panoptic", split)
    data = read_coco(chosen, "images", "annotations", "categories")
    pictures = image_folder(root, chosen.stem.removeprefix("panoptic_"))
    masks = next((f for f in (chosen.with_suffix(""), root / chosen.stem) if f.is_dir()), chosen.with_suffix(""))
    place = {one["id"]: index for index, one in enumerate(data["categories"])}
    _few_enough(len(place), chosen)
    notes = {note["image_id"]: note for note in data["annotations"]}
    if any("file_name" not in note or not isinstance(note.get("segments_info"), list) for note in notes.values()):
        raise ConfigError(f"{chosen}: an annotation without file_name or segments_info: not a panoptic file")
    files = {image["id"]: masks / notes[image["id"]]["file_name"] for image in data["images"] if image["id"] in notes}
    missing = [i["file_name"] for i in data["images"] if i["id"] not in files or not files[i["id"]].is_file()]
    all_labelled(str(chosen), map(str, data["images"]), missing, "panoptic PNG")
    items = []
    for image in data["images"]:
        segments = {}
        for one in notes[image["id"]]["segments_info"]:
            if one["category_id"] not in place:
                raise ConfigError(
                    f"{chosen}: segment {one['id']} is of category {one['category_id']}, which is not listed"
                )
            segments[one["id"]] = VOID if one.get("iscrowd") else place[one["category_id"]]
        path = files[image["id"]]
        items.append(
            Item(
                _id(image),
                pictures / image["file_name"],
                mask_reader=PanopticFile(path, segments),
                instance_reader=PanopticFile(path, segments, numbered=True),
            )
        )
    names = tuple(str(one["name"]) for one in data["categories"])
    return Dataset(name, "coco-panoptic", split, chosen.name, items, frozenset({"masks", "instances"}), regions=names)


def open_stuff(root: Path, name: str, split: str) -> Dataset:
    """COCO-Stuff: stuffthingmaps/*2017/*.png (value = category id - 1), or annotations/stuff_*2017_pixelmaps/*.png
    (92..182 stuff; 183 "other" and 0 void)."""
    table: dict[int, int] | None
    if (root / "stuffthingmaps").is_dir():
        folder = next(
            (f for s in SAME.get(split, (split,)) for f in sorted((root / "stuffthingmaps").glob(f"{s}20*"))), None
        )
        folder = folder or needed_folder(root / "stuffthingmaps", split)
        listed = root / "labels.txt"  # "0: unlabeled", "1: person", ...
        names = tuple(line.split(":")[-1].strip() for line in read_lines(listed)[1:]) if listed.is_file() else ()
        names = names or tuple(f"category {place + 1}" for place in range(STUFF_THINGS))
        table, part = None, folder.name
    else:
        chosen = year_of(root, "stuff", split)
        part = chosen.stem.removeprefix("stuff_")
        folder = chosen.with_name(f"{chosen.stem}_pixelmaps")
        stuff = [one for one in read_coco(chosen, "categories")["categories"] if FIRST_STUFF <= one["id"] < OTHER]
        names = tuple(str(one["name"]) for one in stuff)
        table = {0: VOID, OTHER: VOID} | {one["id"]: place for place, one in enumerate(stuff)}
    masks, pictures = images_in(folder), image_folder(root, part)
    gone = [path.stem for path in masks if not (pictures / f"{path.stem}.jpg").is_file()]
    if gone:
        raise ConfigError(f"{pictures}: {len(gone)} of {len(masks)} images are not there, the first: {gone[0]}.jpg")
    items = [
        Item(path.stem, pictures / f"{path.stem}.jpg", mask_reader=MaskFile(path, len(names), table)) for path in masks
    ]
    return Dataset(name, "coco-stuff", split, folder.name, items, frozenset({"masks"}), regions=names)
