"""What is particular to one kind of source: folders, tar shards, the cells of a table."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.sources import (
    SourceOptions,
    labels_among,
    open_source,
    open_sources,
    read_batches,
)
from dino_tower.sources.measure import measure_mean_std
from dino_tower.sources.shards import expand_braces


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 2 * value, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def red(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_braces_expand_as_in_a_shell() -> None:
    assert expand_braces("a-{08..10}.{tar,x}") == ["a-08.tar", "a-08.x", "a-09.tar", "a-09.x", "a-10.tar", "a-10.x"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_tar_labels_and_captions_from_json_and_a_named_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i in range(12):
            add(tar, f"sub/{i}.depth.png", png(100))
            add(tar, f"sub/{i}.left.png", png(i))
            add(tar, f"sub/{i}.json", json.dumps({"label": i, "kind": f"k{i % 2}", "text": f"t{i}"}).encode())
    source = open_source(f"tar:{tmp_path}/x.tar", SourceOptions(image="left.png"))
    assert source.classes[:3] == ("0", "1", "2") and source.classes[-1] == "11"  # numbers by value
    assert (red(source[3].image()), source[3].caption, source[3].id) == (3, "t3", "x.tar/sub/3.left.png")
    named = open_source(f"tar:{tmp_path}/x.tar", SourceOptions(image="left.png", label="kind", caption="label"))
    assert named.classes == ("k0", "k1") and named[5].label == 1 and named[5].caption == "5"


def test_a_shard_that_breaks_off_gives_what_it_has(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for i in range(4):
            add(tar, f"{i}.png", png(i))
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: 3 * 1024 + 512 + 20])  # in the middle of the last picture
    source = open_source(f"tar:{tmp_path}/cut.tar")
    read = list(read_batches(source, red, batch_size=8))
    assert read[0].items == [0, 1, 2]
    ((name, reason),) = read[0].skipped
    assert name == "cut.tar/3.png" and "file ends after 20 of" in reason


def test_cells_that_are_paths_bytes_arrays_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(9))
    table = datasets.Dataset.from_dict({"file_name": ["a.png", "gone.png", None], "n": [3, 10, 3]})
    table.save_to_disk(str(tmp_path))
    source = open_source(f"hf:{tmp_path}", SourceOptions(label="n"))
    assert red(source[0].image()) == 9 and source.classes == ("3", "10") and source.labels().tolist() == [0, 1, 0]
    for index, reason in ((1, "does not exist"), (2, "no image")):
        with pytest.raises(UnreadableImage, match=reason):
            source[index].image()
    arrays = datasets.Dataset.from_dict({"img": [np.full((4, 4, 3), 7).tolist()]})
    arrays.save_to_disk(str(tmp_path / "arrays"))
    assert red(open_source(f"hf:{tmp_path}/arrays")[0].image()) == 7


def test_folders_are_read_through_links_hidden_files_and_odd_names(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "far.JPG").write_bytes(png(1))
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "linked").symlink_to(outside)
    (data / "sub" / "loop").symlink_to(data)
    (data / ".hidden.png").write_bytes(png(2))
    (data / "._resource.jpg").write_bytes(b"what macOS leaves beside a file")
    Path(os.fsdecode(os.fsencode(data) + b"/\xff\xfe.png")).write_bytes(png(3))
    (data / "notes.txt").write_text("not an image, not looked at")
    source = open_source(str(data))
    assert [red(sample.image()) for sample in source] == [3, 1]
    assert source.sample_id(1) == "sub/linked/far.JPG"
    json.dumps(source.sample_id(0))
    assert source.classes is None  # one folder of images is no classification


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    for part, kinds in (("train", ("a", "b", "c")), ("val", ("b", "c"))):
        for number, kind in enumerate(kinds):
            path = tmp_path / part / kind / "x.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(png(number))
    train, test = (open_sources(str(tmp_path), None, split, hold_out=0.2) for split in ("train", "test"))
    assert (len(train), len(test)) == (3, 2) and train.has_splits
    assert train.classes == ("a", "b", "c") and test.classes == ("b", "c")
    assert labels_among(test, train.classes).tolist() == [1, 2]
    assert "train" in train.describe()
    everything = open_source(str(tmp_path), SourceOptions(split="all"))
    assert len(everything) == 5 and everything.classes[0] == "train/a"
    with pytest.raises(ConfigError, match=r"'tset'.*did you mean 'test'"):
        open_source(str(tmp_path), SourceOptions(split="tset"))
    with pytest.raises(ConfigError, match="has no train and test"):
        open_source(str(tmp_path / "train"), SourceOptions(split="test"))


def test_mean_and_std_are_measured(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 255)):
        Image.new("RGB", (8, 8), (value, 51, 102)).save(tmp_path / f"{name}.png")
    mean, std = measure_mean_std(open_source(str(tmp_path)))
    assert mean == pytest.approx((0.5, 0.2, 0.4), abs=1e-4) and std == pytest.approx((0.5, 0, 0), abs=1e-3)
