"""COCO's three kinds of truth, people's COCO JSON, YOLO: boxes, drawn masks and numbers pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_tower.eval.datasets import NoSplit, allowed_tasks, open_dataset
from dino_tower.eval.datasets.coco_masks import decode_runs
from dino_tower.eval.grounding.grounded import apart, ground

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
RUNS = {"counts": [8, 2, 2, 2, 10], "size": [4, 6]}  # columns first: rows 0 and 1 of columns 2 and 3
POLYGON = [[0, 2, 3, 2, 3, 4, 0, 4]]


def photo(path: Path, wide: int = 6, high: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (wide, high), (9, 99, 9)).save(path)


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")


def instances(**image: Any) -> dict[str, Any]:
    picture = {"id": 9, "file_name": "000000000009.jpg", "width": 6, "height": 4} | image
    first = {"id": 1, "image_id": 9, "category_id": 18, "bbox": [0, 2, 3, 2], "area": 6, "iscrowd": 0}
    crowd = {"id": 2, "image_id": 9, "category_id": 3, "bbox": [2, 0, 2, 2], "area": 4, "iscrowd": 1}
    notes = [first | {"segmentation": POLYGON}, crowd | {"segmentation": RUNS}]
    return {"images": [picture], "annotations": notes, "categories": CATEGORIES}


def test_coco_instances_draw_masks_and_void_crowds(tmp_path: Path) -> None:
    photo(tmp_path / "val2017" / "000000000009.jpg")
    write(tmp_path / "annotations" / "instances_val2017.json", instances())
    said = {"annotations": [{"image_id": 9, "caption": " A dog. "}]}
    write(tmp_path / "annotations" / "captions_val2017.json", said)
    data = open_dataset(str(tmp_path))
    (item,) = data
    assert (data.kind, data.regions) == ("coco", ("background", "dog", "car"))
    rows = [[0, 0, 255, 255, 0, 0]] * 2 + [[1, 1, 1, 0, 0, 0]] * 2
    assert item.mask().tolist() == rows
    assert item.instances().tolist() == rows
    assert [(box.corners, box.label, box.difficult) for box in item.boxes or ()] == [
        ((0, 2, 3, 4), 1, False), ((2, 0, 4, 2), 2, True),
    ]  # fmt: skip
    assert item.captions == ("A dog.",)
    assert {"discovery", "text-image", "in-context"} <= set(allowed_tasks(data))


def test_run_lengths_as_pycocotools_writes_them() -> None:
    counts = [8, 2, 2, 2, 10]
    assert np.array_equal(decode_runs(_encoded(counts), 4, 6), decode_runs(counts, 4, 6))
    mask = decode_runs(_encoded([0, 40, 3, 57]), 10, 10)
    assert mask.T.reshape(-1)[:40].all() and not mask.T.reshape(-1)[40:43].any() and mask.T.reshape(-1)[43:].all()


def _encoded(counts: list[int]) -> str:
    """maskApi.c `rleToString`."""
    text = ""
    for place, run in enumerate(counts):
        value = run - counts[place - 2] if place > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text += chr(48 + (bits | 32 if more else bits))
    return text


def test_coco_panoptic(tmp_path: Path) -> None:
    photo(tmp_path / "val2017" / "000000000009.jpg", 4, 1)
    ids = np.array([[[0, 0, 0], [1, 2, 0], [4, 5, 1], [7, 0, 0]]], np.uint8)  # id = R + 256 G + 65536 B
    (tmp_path / "annotations" / "panoptic_val2017").mkdir(parents=True)
    Image.fromarray(ids).save(tmp_path / "annotations" / "panoptic_val2017" / "000000000009.png")
    segments = [
        {"id": 513, "category_id": 3, "iscrowd": 0}, {"id": 66820, "category_id": 18, "iscrowd": 0},
        {"id": 7, "category_id": 18, "iscrowd": 1},
    ]  # fmt: skip
    note = {"image_id": 9, "file_name": "000000000009.png", "segments_info": segments}
    write(tmp_path / "annotations" / "panoptic_val2017.json", instances() | {"annotations": [note]})
    data = open_dataset(str(tmp_path))
    assert (data.kind, data.regions) == ("coco-panoptic", ("dog", "car"))
    assert data[0].mask().tolist() == [[255, 1, 0, 255]]
    assert data[0].instances().tolist() == [[255, 1, 2, 255]]


def test_coco_stuff_of_both_editions(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "val2017" / "9.jpg", 3, 1)
    maps = tmp_path / "annotations" / "stuff_val2017_pixelmaps"
    maps.mkdir(parents=True)
    Image.fromarray(np.array([[0, 92, 183]], np.uint8)).save(maps / "9.png")
    names = [{"id": 92, "name": "banner"}, {"id": 93, "name": "blanket"}, {"id": 183, "name": "other"}]
    write(tmp_path / "annotations" / "stuff_val2017.json", {"categories": names})
    data = open_dataset(str(tmp_path))
    assert (data.kind, data.regions, data[0].mask().tolist()) == ("coco-stuff", ("banner", "blanket"), [[255, 0, 255]])
    (tmp_path / "stuffthingmaps" / "val2017").mkdir(parents=True)
    Image.fromarray(np.array([[0, 181, 255]], np.uint8)).save(tmp_path / "stuffthingmaps" / "val2017" / "9.png")
    write(tmp_path / "labels.txt", "0: unlabeled\n" + "".join(f"{i}: name {i}\n" for i in range(1, 183)))
    both = open_dataset(f"coco-stuff:{tmp_path}")
    assert both[0].mask().tolist() == [[0, 181, 255]]
    assert (both.regions[0], both.regions[181]) == ("name 1", "name 182")


def test_own_coco_json_with_a_split_in_each_image_and_phrases(tmp_path: Path) -> None:
    data = instances(split="val")
    data["images"].append({"id": 10, "file_name": "b.jpg", "split": "train"})
    del data["annotations"][0]["segmentation"]
    data["annotations"][0]["bbox"] = [1.5, 2, 3, 0]  # no area: not a box
    write(tmp_path / "instances.json", data)
    row = {"image_id": 9, "caption": "The big car.", "span": [4, 11], "bbox": [2, 0, 2, 2]}
    write(tmp_path / "phrases.jsonl", json.dumps(row) + "\n")
    photo(tmp_path / "images" / "000000000009.jpg")
    photo(tmp_path / "images" / "b.jpg")
    test, train = open_dataset(str(tmp_path)), open_dataset(str(tmp_path), "train")
    assert ([i.id for i in test], [i.id for i in train]) == (["000000000009"], ["b"])
    assert [(box.corners, test.regions[box.label]) for box in test[0].boxes or ()] == [((2, 0, 4, 2), "car")]
    assert test[0].phrases == (("big car", (2, 0, 4, 2)),)
    assert train[0].boxes == ()
    assert allowed_tasks(test) == ["discovery", "homography", "grounding-regions", "grounding-maps", "health"]


@pytest.mark.parametrize("listed", ["names: [leaf, bud]\n", "names:\n  0: leaf\n  1: bud\n", None])
def test_yolo(tmp_path: Path, listed: str | None) -> None:
    write(tmp_path / ("data.yaml" if listed else "classes.txt"), listed or "leaf\nbud\n")
    for part in ("train", "val"):
        photo(tmp_path / "images" / part / "a.jpg", 100, 50)
        photo(tmp_path / "images" / part / "none.jpg", 100, 50)
        write(tmp_path / "labels" / part / "a.txt", "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.3 0.2 0.3 0.8\n")
    data = open_dataset(str(tmp_path))
    assert (data.kind, data.chosen_by, data.regions) == ("yolo", "images/val", ("leaf", "bud"))
    found = [(box.label, *np.round(box.corners, 6).tolist()) for box in data[0].boxes or ()]
    assert found == [(1, 40, 15, 60, 35), (0, 10, 10, 30, 40)]
    assert data[1].boxes == ()


def test_pictures_of_two_splits_may_have_the_same_numbers(tmp_path: Path) -> None:
    """Ids were bare file names: grounding found 000 and 001 "in train and in test", and a/000 was b/000."""
    for part in ("train", "test"):
        data = instances()
        data["images"] = [{"id": i, "file_name": f"{'ab'[i]}/000.jpg"} for i in range(2)]
        del data["annotations"][0]["segmentation"]
        data["annotations"] = [data["annotations"][0] | {"image_id": i, "bbox": [0, 0, 4, 3]} for i in range(2)]
        write(tmp_path / part / "instances.json", data)
        rows = [{"image_id": i, "caption": "car", "span": [0, 3], "bbox": [0, 0, 4, 3]} for i in range(2)]
        write(tmp_path / part / "phrases.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for name in "ab":
            photo(tmp_path / part / "images" / name / "000.jpg")
    train, test = open_dataset(str(tmp_path), "train"), open_dataset(str(tmp_path))
    assert (train.ids(), test.ids()) == (["train/a/000", "train/b/000"], ["test/a/000", "test/b/000"])
    apart([ground(item) for item in train], [ground(item) for item in test])


@pytest.mark.parametrize(("own", "missing"), [("val", "train"), ("train", "test")])
def test_yolo_pictures_of_one_split_only_are_not_split_again(tmp_path: Path, own: str, missing: str) -> None:
    """With images/val only, "train" was four fifths of everything, test pictures included."""
    write(tmp_path / "classes.txt", "leaf\n")
    for place in range(12):
        photo(tmp_path / "images" / own / f"{place:02d}.jpg", 10, 5)
        write(tmp_path / "labels" / own / f"{place:02d}.txt", "0 0.5 0.5 0.2 0.4\n")
    data = open_dataset(str(tmp_path), "train" if own == "train" else "test")
    assert data.ids() == [f"{own}/{place:02d}" for place in range(12)]
    with pytest.raises(NoSplit, match=f"none for split '{missing}'"):
        open_dataset(str(tmp_path), missing)


def test_coco_without_its_training_pictures_has_no_training_part(tmp_path: Path) -> None:
    """Annotations of both parts come in one file, 18 GB of training pictures in another: few want to have both."""
    for part in ("train2017", "val2017"):
        write(tmp_path / "annotations" / f"instances_{part}.json", instances())
    photo(tmp_path / "val2017" / "000000000009.jpg")
    assert open_dataset(str(tmp_path)).ids() == ["000000000009"]
    with pytest.raises(NoSplit, match="neither a folder images/train2017 nor train2017"):
        open_dataset(str(tmp_path), "train")
