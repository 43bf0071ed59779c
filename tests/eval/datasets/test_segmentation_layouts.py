"""Masks come out as the class ids that the score counts, from every layout on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_tower.eval.datasets import NoSplit, allowed_tasks, open_dataset


def photo(path: Path, wide: int = 6, high: int = 4, red: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (wide, high), (red, 10, 10)).save(path)


def save(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette:
        picture = picture.convert("P")
        picture.frombytes(values.tobytes())
        picture.putpalette([(7 * i) % 256 for i in range(768)])
    picture.save(path)


def grid(*rows: list[int], dtype: type = np.uint8) -> np.ndarray:
    return np.array(rows, dtype)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


XML = """<annotation><object><name>cat</name><difficult>1</difficult><bndbox><xmin>2</xmin><ymin>1</ymin>
<xmax>4</xmax><ymax>3</ymax></bndbox></object></annotation>"""
FOUR_BY_SIX = grid([0, 0, 8, 8, 255, 0], [0, 0, 8, 8, 255, 0], [0, 0, 0, 0, 0, 0], [15, 15, 0, 0, 0, 0])


@pytest.mark.parametrize("devkit", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc(tmp_path: Path, devkit: str) -> None:
    root = tmp_path / devkit
    photo(root / "JPEGImages" / "2007_000032.jpg")
    save(root / "SegmentationClass" / "2007_000032.png", FOUR_BY_SIX, palette=True)
    save(
        root / "SegmentationObject" / "2007_000032.png", np.where(FOUR_BY_SIX == 15, 2, FOUR_BY_SIX // 8), palette=True
    )
    text(root / "Annotations" / "2007_000032.xml", XML)
    text(root / "ImageSets" / "Segmentation" / "val.txt", "2007_000032\n")
    text(root / "ImageSets" / "Main" / "trainval.txt", "2007_000032\n")
    data = open_dataset(str(tmp_path))  # no public test list: val
    assert (data.kind, data.chosen_by) == ("voc", "ImageSets/Segmentation/val.txt")
    assert data.has == {"masks", "instances", "boxes"}
    (item,) = data
    assert np.array_equal(item.mask(), FOUR_BY_SIX)
    assert item.instances()[3].tolist() == [2, 2, 0, 0, 0, 0]
    (box,) = item.boxes or ()
    assert box.corners == (1, 0, 4, 3)
    assert (data.regions[box.label], box.difficult) == ("cat", True)
    assert {"linear-segmentation", "discovery"} <= set(allowed_tasks(data))
    boxes = open_dataset(f"voc-boxes:{tmp_path}", "trainval")
    assert boxes.regions[(boxes[0].boxes or ())[0].label] == "cat"
    data.check()


def test_ade20k_drops_zero_and_counts_from_it(tmp_path: Path) -> None:
    for part in ("training", "validation"):
        photo(tmp_path / "images" / part / "ADE_1.jpg", 3, 1)
        save(tmp_path / "annotations" / part / "ADE_1.png", grid([0, 1, 150]))
    rows = "".join(f"{i}\t0.1\t1\t1\tthing{i}, other name\n" for i in range(1, 151))
    text(tmp_path / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName\n" + rows)
    data = open_dataset(str(tmp_path))
    assert (data.kind, data.chosen_by) == ("ade20k", "images/validation")
    assert data[0].mask().tolist() == [[255, 0, 149]]
    assert (data.regions[0], data.regions[149]) == ("thing1", "thing150")


def test_cityscapes_keeps_the_nineteen_classes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        photo(tmp_path / "leftImg8bit" / part / "ulm" / "ulm_000000_000019_leftImg8bit.png", 4, 1)
        save(tmp_path / "gtFine" / part / "ulm" / "ulm_000000_000019_gtFine_labelIds.png", grid([0, 7, 33, 29]))
    data = open_dataset(str(tmp_path))
    assert data[0].id == "ulm_000000_000019"
    assert data[0].mask().tolist() == [[255, 0, 18, 255]]
    assert (data.regions[0], data.regions[18], len(data.regions)) == ("road", "bicycle", 19)


@pytest.mark.parametrize("lists", [True, False])
def test_camvid(tmp_path: Path, lists: bool) -> None:
    for part in ("train", "val", "test"):
        photo(tmp_path / part / "0001TP_1.png", 3, 1)
        save(tmp_path / f"{part}annot" / "0001TP_1.png", grid([0, 10, 11]))
        if lists:
            text(
                tmp_path / f"{part}.txt", f"/SegNet/CamVid/{part}/0001TP_1.png /SegNet/CamVid/{part}annot/0001TP_1.png"
            )
    data = open_dataset(str(tmp_path))
    assert (data.kind, data.chosen_by) == ("camvid", "test.txt" if lists else "test")
    assert data[0].mask().tolist() == [[0, 10, 255]]


def test_own_masks_in_folders_lists_and_by_hash(tmp_path: Path) -> None:
    for place in range(12):
        photo(tmp_path / "images" / f"{place}.jpg", 3, 1, red=10 * place)
        save(tmp_path / "masks" / f"{place}.png", grid([0, 1, 255]), palette=True)
    text(tmp_path / "classes.txt", "ground\nleaf\n")
    train, test = (open_dataset(str(tmp_path), split) for split in ("train", "test"))
    ids = [item.id for item in [*train, *test]]
    assert sorted(ids, key=int) == [str(place) for place in range(12)]
    assert "hash" in test.chosen_by
    assert train[0].mask().tolist() == [[0, 1, 255]]
    assert "saliency" in allowed_tasks(train)
    text(tmp_path / "train.txt", "3\n4\n")
    listed = open_dataset(str(tmp_path), "train")
    assert [item.id for item in listed] == ["3", "4"]
    assert abs(listed[1].image().getpixel((0, 0))[0] - 40) < 9
    for part in ("train", "val"):
        photo(tmp_path / "images" / part / "a.png", 1, 1)
        save(tmp_path / "masks" / part / "a.png", grid([1]))
    assert open_dataset(str(tmp_path)).chosen_by == "images/val"


@pytest.mark.parametrize(("own", "missing"), [("val", "train"), ("train", "test")])
@pytest.mark.parametrize("lists", [True, False])
def test_where_one_split_has_its_own_part_the_other_is_no_share_of_everything(
    tmp_path: Path, own: str, missing: str, lists: bool
) -> None:
    """With images/val only, "train" was four fifths of everything: towers were trained on what they were judged on."""
    for place in range(12):
        name = f"{own}/{place}" if place < 6 and not lists else str(place)
        photo(tmp_path / "images" / f"{name}.jpg", 3, 1)
        save(tmp_path / "masks" / f"{name}.png", grid([0, 1, 255]))
    text(tmp_path / "classes.txt", "ground\nleaf\n")
    if lists:
        text(tmp_path / f"{own}.txt", "3\n4\n")
    assert len(open_dataset(str(tmp_path), "train" if own == "train" else "test")) == (2 if lists else 6)
    with pytest.raises(NoSplit, match=f"none for split '{missing}'; give both .* or neither"):
        open_dataset(str(tmp_path), missing)


def test_masks_of_given_folders_with_sixteen_bit_values_and_coco_categories(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / "photos" / f"{name}.jpg", 3, 1)
    save(tmp_path / "semantic" / "a.png", grid([0, 700, 3], dtype=np.uint16))
    save(tmp_path / "semantic" / "b.png", grid([3, 3, 255]))
    text(tmp_path / "semantic_train.txt", "a\n")
    text(tmp_path / "semantic_val.txt", "b\n")
    rows = [{"id": 3, "name": "sky"}, {"id": 700, "name": "sea"}]
    text(tmp_path / "names.json", json.dumps({"categories": rows}))
    spelling = f"masks:{tmp_path}/photos,{tmp_path}/semantic,{tmp_path}/names.json"
    assert open_dataset(spelling, "train")[0].mask().tolist() == [[255, 1, 0]]
    test = open_dataset(spelling)
    assert (test[0].mask().tolist(), test.regions, test.chosen_by) == (
        [[0, 0, 255]],
        ("sky", "sea"),
        "semantic_val.txt",
    )


def test_scenes_know_everything_about_themselves() -> None:
    data = open_dataset("scenes:medium")
    item = data[5]
    assert item.mask().shape == item.instances().shape == item.size()[::-1]
    assert item.label is not None and len(data.classes) > item.label
    for box in item.boxes or ():
        left, top, right, bottom = (int(value) for value in box.corners)
        assert (item.mask()[top:bottom, left:right] == box.label).any()
    assert {"grounding-maps", "knn", "discovery"} <= set(allowed_tasks(data))
    assert [one.id for one in data.items[2:4]] == ["test-000002", "test-000003"]
