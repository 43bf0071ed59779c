"""Whatever is wrong with the data is one line that names the file, before any work is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets import open_dataset


def photo(path: Path, wide: int = 3, high: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (wide, high), (9, 9, 9)).save(path)


def save(path: Path, values: Any, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype)).save(path)


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")


def masks(root: Path) -> None:
    for part in ("train", "val"):
        photo(root / "images" / part / "a.jpg")
        save(root / "masks" / part / "a.png", [[0, 1, 255]])
    write(root / "classes.txt", "ground\nleaf\n")


def coco(root: Path, **change: Any) -> None:
    photo(root / "images" / "a.jpg")
    note = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]} | change
    image = {"id": 1, "file_name": "a.jpg", "width": 3, "height": 1, "split": "test"}
    data = {"images": [image], "annotations": [note], "categories": [{"id": 1, "name": "cat"}]}
    write(root / "instances.json", data)


def yolo(root: Path, line: str = "0 0.5 0.5 0.1 0.1") -> None:
    photo(root / "images" / "val" / "a.jpg")
    write(root / "labels" / "val" / "a.txt", line)
    write(root / "classes.txt", "leaf\n")


def voc(root: Path) -> None:
    photo(root / "JPEGImages" / "a.jpg")
    save(root / "SegmentationClass" / "a.png", [[0, 1, 255]])
    write(root / "ImageSets" / "Segmentation" / "val.txt", "a\n")


def davis(root: Path) -> None:
    write(root / "ImageSets" / "val.txt", "bear\n")
    for frame in ("00000", "00001"):
        photo(root / "JPEGImages" / "480p" / "bear" / f"{frame}.jpg")
        save(root / "Annotations" / "480p" / "bear" / f"{frame}.png", [[0, 1, 1]])


def classes(root: Path) -> None:
    for name in ("train/ant", "train/bee", "test/ant"):
        photo(root / name / "1.jpg")


def one_image(root: Path) -> None:
    photo(root / "images" / "a.jpg")
    save(root / "masks" / "a.png", [[0, 1, 0]])
    write(root / "classes.txt", "ground\nleaf\n")


def depth(root: Path) -> None:
    for part in ("train", "test"):
        photo(root / part / "rgb_1.jpg")
        save(root / part / "sync_depth_1.png", [[1, 2, 3]], np.uint16)


LISTS = "ImageSets/Segmentation"
Case = tuple[Callable[[Path], Any], Callable[[Path], Any], str]
CASES: dict[str, Case] = {
    "no layout": (lambda r: write(r / "a.txt", "x"), lambda r: None, "no layout that is known"),
    "mask missing": (masks, lambda r: (r / "masks/val/a.png").rename(r / "masks/val/b.png"),
     "1 of 1 images have no mask"),
    "mask of another size": (masks, lambda r: save(r / "masks/val/a.png", [[0, 1]]),
     "mask is 2 x 1, the picture 3 x 1"),
    "class id out of range": (masks, lambda r: save(r / "masks/val/a.png", [[0, 1, 2]]),
     "class id 2; the 2 classes are 0 to 1"),
    "mask in colours": (masks, lambda r: save(r / "masks/val/a.png", [[[0, 1, 2]] * 3]), "mask in 3 channels"),
    "mask of floats": (masks, lambda r: _float_mask(r / "masks/val/a.png"), "float32"),
    "mask as JPEG": (masks, lambda r: _as_jpeg(r / "masks/val/a.png"), "JPEG keeps no exact values"),
    "mask cut off": (masks, lambda r: _cut(r / "masks/val/a.png", 42), "cannot be read as a label"),
    "picture cut off": (masks, lambda r: _cut(r / "images/val/a.jpg", 300), "a.jpg: .*Truncated"),
    "no class list": (masks, lambda r: (r / "classes.txt").unlink(), "no classes.txt or classes.json"),
    "empty class list": (masks, lambda r: write(r / "classes.txt", "\n\n"), "lists nothing"),
    "one image only": (one_image, lambda r: None, "1 image; needs two or more"),
    "broken JSON": (coco, lambda r: write(r / "instances.json", '{"images": [\n,'), "broken JSON in line 2"),
    "JSON of another kind": (coco, lambda r: write(r / "instances.json", [1, 2]), "no list 'images'"),
    "unknown image": (coco, lambda r: coco(r, image_id=7), "of image 7, which is not listed"),
    "unknown category": (coco, lambda r: coco(r, category_id=7), "of category 7, which is not listed"),
    "bad box": (coco, lambda r: coco(r, bbox=[0, 0, -1, 1]), "needs x, y, width, height"),
    "infinite box": (coco, lambda r: coco(r, bbox=[0, 0, 1e999, 1]), "needs x, y, width, height"),
    "polygon of two points": (coco, lambda r: coco(r, segmentation=[[0, 0, 1, 1]]), "three points or more"),
    "runs too short": (coco, lambda r: coco(r, segmentation={"counts": [1, 1], "size": [1, 3]}),
     "fill 2 of 1 x 3 pixels"),
    "picture missing": (coco, lambda r: (r / "images/a.jpg").unlink(), "1 of 1 images of instances.json are missing"),
    "broken phrases": (coco, lambda r: write(r / "phrases.jsonl", "{}\n"), "line 1 needs image_id"),
    "YOLO class": (yolo, lambda r: yolo(r, "3 0.5 0.5 0.1 0.1"), "line 1: class 3; the 1 classes are 0 to 0"),
    "YOLO pixels": (yolo, lambda r: yolo(r, "0 50 50 10 10"), "shares of the picture, not pixels"),
    "YOLO words": (yolo, lambda r: yolo(r, "leaf 0 0 1 1"), "is not numbers"),
    "YOLO names missing": (yolo, lambda r: (r / "classes.txt").unlink(), "0 YAML files and no classes.txt"),
    "split list missing": (voc, lambda r: (r / LISTS / "val.txt").rename(r / LISTS / "train.txt"),
     "no test.txt or val.txt .* lists: train"),
    "VOC mask missing": (voc, lambda r: write(r / "ImageSets/Segmentation/val.txt", "a\nb\n"),
     "1 of 2 images have no mask in SegmentationClass, the first: b"),
    "VOC broken XML": (voc, lambda r: write(r / "Annotations/a.xml", "<annotation><object>"), "broken XML"),
    "VOC unknown class": (voc, lambda r: write(r / "Annotations/a.xml", XML.replace("cat", "catt")),
     "did you mean 'cat'"),
    "frame without mask": (davis, lambda r: (r / "Annotations/480p/bear/00001.png").unlink(),
     "1 of 2 images have no mask"),
    "sequence missing": (davis, lambda r: write(r / "ImageSets/val.txt", "bear\nlion\n"), "no such folder"),
    "empty class": (classes, lambda r: (r / "train/cow").mkdir(), "class 'cow' has no images"),
    "class of test only": (classes, lambda r: photo(r / "test/cow/1.jpg"), "class 'cow' of test is not in train"),
    "image in no class": (classes, lambda r: photo(r / "test/1.jpg"), "no class"),
    "depth of 8 bits": (depth, lambda r: save(r / "test/sync_depth_1.png", [[1, 2, 3]]), "8 bits cannot hold"),
    "depth missing": (depth, lambda r: (r / "test/sync_depth_1.png").unlink(), "1 of 1 images have no depth map"),
}  # fmt: skip
XML = """<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>1</ymax></bndbox>
</object></annotation>"""


def _float_mask(path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(path, format="TIFF")


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _as_jpeg(path: Path) -> None:
    Image.new("L", (3, 1)).save(path, format="JPEG")


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_one_line(case: str, tmp_path: Path) -> None:
    build, spoil, reason = CASES[case]
    build(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=reason) as caught:
        open_dataset(str(tmp_path)).check()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("build", [masks, coco, yolo, voc, davis, classes, depth])
def test_the_same_data_unspoilt_is_read(build: Callable[[Path], Any], tmp_path: Path) -> None:
    build(tmp_path)
    data = open_dataset(str(tmp_path))
    data.check()
    assert len(data) == 1


@pytest.mark.parametrize(
    ("spelling", "split", "reason"),
    [
        ("nowhere", "test", "does not exist"),
        ("cocoo:{}", "test", "no kind of data set 'cocoo'; did you mean 'coco'"),
        ("{}", "tset", "no split 'tset'; did you mean 'test'"),
        ("scenes:esay", "test", "did you mean 'easy'"),
        ("masks:a,b", "test", "write masks:IMAGES,MASKS,CLASSES"),
        ("coco:{}", "test", "no annotations/instances_val2017.json"),
        ("spair:{}", "test", "does not exist"),
        ("cityscapes:{}", "test", "no folder for split 'val'"),
    ],
)
def test_bad_spellings_are_one_line(spelling: str, split: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        open_dataset(spelling.format(tmp_path), split)
    assert "\n" not in str(caught.value)
