"""Videos, pairs, depth, retrieval and labels as they lie on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets import LAYOUTS, NoSplit, allowed_tasks, open_dataset
from dino_tower.eval.datasets.depth import NYU_CAMERA
from dino_tower.eval.settings import Settings
from dino_tower.eval.suite import open_data
from dino_tower.eval.tasks.copy_detection import COPY_DETECTION
from dino_tower.sources.opening import hash_split, open_source


def photo(path: Path, wide: int = 3, high: int = 1, red: int = 99) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (wide, high), (red, 9, 9)).save(path)


def save(path: Path, values: list, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype)).save(path)


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(
    ("listing", "line", "stored", "read"),
    [
        ("2017", "bear", [0, 1, 2], [0, 1, 2]),
        ("480p", "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png 1", [0, 255, 255], [0, 1, 1]),
        ("", "bear", [0, 1, 1], [0, 1, 1]),
        ("", "bear", [0, 1, 2], [0, 1, 2]),
    ],
)
def test_davis(tmp_path: Path, listing: str, line: str, stored: list[int], read: list[int]) -> None:
    write(tmp_path / "ImageSets" / listing / "val.txt", line + "\n")
    for frame in range(3):
        photo(tmp_path / "JPEGImages" / "480p" / "bear" / f"{frame:05d}.jpg")
        save(tmp_path / "Annotations" / "480p" / "bear" / f"{frame:05d}.png", [stored])
    data = open_dataset(str(tmp_path))
    (video,) = data
    assert (data.kind, video.id, allowed_tasks(data)) == ("davis", "bear", ["video", "homography", "health"])
    assert [frame.id for frame in video.frames] == ["bear/00000", "bear/00001", "bear/00002"]
    assert [frame.instances().tolist() for frame in video.frames] == [[read]] * 3


def test_spair(tmp_path: Path) -> None:
    name = "000001-2008_000033-2010_001731:cat"
    write(tmp_path / "Layout" / "large" / "test.txt", name + "\n")
    pair = {
        "src_imname": "2008_000033.jpg", "trg_imname": "2010_001731.jpg", "category": "cat", "src_bndbox": [0, 0, 2, 1],
        "trg_bndbox": [1, 0, 3, 1], "src_kps": [[0, 0], [2, 0]], "trg_kps": [[1, 0], [2, 0]],
    }  # fmt: skip
    write(tmp_path / "PairAnnotation" / "test" / f"{name}.json", pair)
    photo(tmp_path / "JPEGImages" / "cat" / "2008_000033.jpg", red=10)
    photo(tmp_path / "JPEGImages" / "cat" / "2010_001731.jpg", red=200)
    data = open_dataset(str(tmp_path))
    (item,) = data
    assert item.pair is not None
    assert (item.pair.points.tolist(), item.pair.target_points.tolist()) == ([[0, 0], [2, 0]], [[1, 0], [2, 0]])
    assert item.pair.target_box == (1, 0, 3, 1)
    assert item.pair.target.image().getpixel((0, 0))[0] > 190
    assert data.classes[item.label or 0] == "cat"
    with pytest.raises(ConfigError, match="train, val, test"):
        open_dataset(str(tmp_path), "trainval")


def test_nyu_as_densedepth_and_bts_extract_it(tmp_path: Path) -> None:
    dense, bts = tmp_path / "dense", tmp_path / "bts"
    photo(dense / "nyu2_train" / "den" / "1.jpg")
    save(dense / "nyu2_train" / "den" / "1.png", [[0, 51, 255]])
    photo(dense / "nyu2_test" / "00000_colors.png")
    save(dense / "nyu2_test" / "00000_depth.png", [[0, 1500, 10000]], np.uint16)
    assert open_dataset(str(dense), "train")[0].depth().tolist() == [[0, 2, 10]]
    test = open_dataset(str(dense))
    assert (len(test), test[0].depth().dtype, test[0].depth().tolist()) == (1, np.float32, [[0, 1.5, 10]])
    for part in ("train", "test"):
        photo(bts / "official_splits" / part / "kitchen" / "rgb_00045.jpg")
        save(bts / "official_splits" / part / "kitchen" / "sync_depth_00045.png", [[0, 2000, 3000]], np.uint16)
    data = open_dataset(str(bts))
    assert (data.kind, data[0].id, data[0].depth().tolist()) == ("depth", "kitchen/rgb_00045", [[0, 2, 3]])
    for one in (test, data):  # its camera is known, so that normals can be formed
        assert (one[0].camera, allowed_tasks(one)) == (NYU_CAMERA, ["homography", "depth", "normals", "health"])


@pytest.mark.parametrize("folders", [True, False])
def test_own_depth_with_its_units(tmp_path: Path, folders: bool) -> None:
    for place in range(20):
        photo(tmp_path / (f"rgb/{place:03d}.jpg" if folders else f"{place:03d}_rgb.jpg"))
        name = f"depth/{place:03d}.png" if folders else f"{place:03d}_depth.png"
        save(tmp_path / name, [[7, 5000, 10000]], np.uint16)
    if not folders:
        rows = [{"id": f"{place:03d}", "depth_units_per_metre": 5000, "invalid": 7} for place in range(20)]
        write(tmp_path / "index.json", rows)
    data = open_dataset(str(tmp_path), "train")
    assert len(data) + len(open_dataset(str(tmp_path))) == 20
    expected = [[0.007, 5, 10]] if folders else [[0, 1, 2]]
    assert np.allclose(data[0].depth(), expected)
    assert "normals" not in allowed_tasks(data)  # no camera


def test_depth_that_has_a_test_folder_only_is_not_trained_on(tmp_path: Path) -> None:
    """Four fifths of everything, the test folder included, played the training part."""
    for place in range(12):
        folder = tmp_path / ("test" if place < 6 else "rest")
        photo(folder / f"{place}_rgb.jpg")
        save(folder / f"{place}_depth.png", [[7, 5000, 10000]], np.uint16)
    assert len(open_dataset(str(tmp_path))) == 6
    with pytest.raises(NoSplit, match="there is a test or val part and none for split 'train'"):
        open_dataset(str(tmp_path), "train")


def test_a_camera_in_the_index_allows_normals_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    rows = [{"id": f"{place:03d}", "depth_units_per_metre": 1000, "camera": [500, 501, 1, 0.5]} for place in range(20)]
    for place in range(20):
        photo(tmp_path / f"{place:03d}_rgb.jpg")
        save(tmp_path / f"{place:03d}_depth.png", [[7, 5000, 10000]], np.uint16)
    write(tmp_path / "index.json", rows)
    data = open_dataset(str(tmp_path))
    assert data[0].camera == (500, 501, 1, 0.5)
    assert "normals" in allowed_tasks(data)
    for wrong in ([500, 501, 1], [0, 501, 1, 2], "pinhole"):
        write(tmp_path / "index.json", [rows[0] | {"camera": wrong}])
        with pytest.raises(ConfigError, match=r"camera of '000' is .*needs \[fx, fy, cx, cy\]"):
            open_dataset(str(tmp_path))


def test_revisited_oxford_is_read_from_json_and_never_unpickled(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "q"):
        photo(tmp_path / "jpg" / f"{name}.jpg", 10, 8)
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(ConfigError, match=r"pickle can run code .*json.dump") as caught:
        open_dataset(str(tmp_path))
    assert "\n" not in str(caught.value)
    truth = {"bbx": [2.0, 1.0, 7.0, 5.0], "easy": [1], "hard": [0], "junk": [2]}
    write(tmp_path / "gnd_roxford5k.json", {"imlist": ["a", "b", "c"], "qimlist": ["q"], "gnd": [truth]})
    data = open_dataset(str(tmp_path))
    (query,) = data.queries
    assert [item.id for item in data.database] == ["a", "b", "c"]
    assert query.query is not None
    assert (query.query.easy, query.query.hard, query.query.junk) == ((1,), (0,), (2,))
    assert query.image().size == (5, 4)  # cut to its box
    assert allowed_tasks(data) == ["homography", "retrieval", "health"]


def test_copydays(tmp_path: Path) -> None:
    for name in ("original/200000", "original/200100", "strong/200101", "strong/200102"):
        photo(tmp_path / f"{name}.jpg")
    data = open_dataset(str(tmp_path))
    assert [item.query.easy for item in data.queries if item.query] == [(1,), (1,)]
    assert len(data.database) == 2
    with pytest.raises(ConfigError, match="no split 'train'"):
        open_dataset(str(tmp_path), "train")
    photo(tmp_path / "strong" / "200901.jpg")
    with pytest.raises(ConfigError, match=r"200901\.jpg has no original"):
        open_dataset(str(tmp_path))


def test_copydays_with_other_pictures_to_learn_whitening_from(tmp_path: Path) -> None:
    """No split but test could be opened, so that copies were never searched in whitened features."""
    for name in ("original/200000", "original/200100", "strong/200101", "train/a/1", "train/b/1", "train/c"):
        photo(tmp_path / f"{name}.jpg")
    (split,) = open_data(Settings(towers=("builtin:scenes",), data=(str(tmp_path),)))
    assert split.train is not None and len(split.test) == 3
    assert split.train.ids() == ["train/a/1.jpg", "train/b/1.jpg", "train/c.jpg"]
    view: Any = SimpleNamespace(
        rows=lambda data: [torch.rand(2, 2, 4) for _ in data], vectors=lambda data: torch.rand(len(data), 4)
    )
    assert COPY_DETECTION.run(view, split, 0).chosen == {"whitening": "2 directions of 3 training pictures"}


@pytest.mark.parametrize("flat", [True, False])
def test_imagenet(tmp_path: Path, flat: bool) -> None:
    base = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" if flat else tmp_path
    for one in ("n01440764", "n01443537"):
        photo(base / "train" / one / f"{one}_1.JPEG")
    write(tmp_path / "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    if flat:
        photo(base / "val" / "ILSVRC2012_val_00000001.JPEG")
        rows = "ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 1 2 3 4 \n"
        write(tmp_path / "LOC_val_solution.csv", rows)
    else:
        photo(base / "val" / "n01443537" / "ILSVRC2012_val_00000001.JPEG")
    data = open_dataset(str(tmp_path))
    assert (data.kind, data.classes) == ("imagenet", ("tench", "goldfish"))
    assert [item.label for item in data] == [1]
    assert [item.label for item in open_dataset(str(tmp_path), "train")] == [0, 1]


def test_class_folders_agree_between_splits(tmp_path: Path) -> None:
    for name in ("train/bee", "train/ant", "train/cow", "val/cow"):
        photo(tmp_path / name / "1.jpg")
    train, test = open_dataset(str(tmp_path), "train"), open_dataset(str(tmp_path))
    assert train.classes == test.classes == ("ant", "bee", "cow")
    assert [item.label for item in test] == [2]
    assert test.chosen_by == "val/"


def test_class_folders_without_splits_are_split_as_training_splits_them(tmp_path: Path) -> None:
    for place in range(30):
        photo(tmp_path / ("ant", "bee")[place % 2] / f"{place}.jpg")
    test, train = open_dataset(str(tmp_path)), open_dataset(str(tmp_path), "train")
    expected = hash_split(open_source(str(tmp_path)), "test")
    assert [item.id for item in test] == [expected.sample_id(i) for i in range(len(expected))]
    assert len(train) + len(test) == 30
    assert "hash" in test.chosen_by
    assert allowed_tasks(test) == ["knn", "linear-probe", "logistic", "homography", "zero-shot", "health"]
    assert "2 classes; labels; split by hash" in test.describe()


def test_the_page_lists_every_layout() -> None:
    page = (Path(__file__).parents[3] / "docs" / "eval.md").read_text(encoding="utf-8")
    assert [kind for kind in LAYOUTS if f"| `{kind}` |" not in page] == []
