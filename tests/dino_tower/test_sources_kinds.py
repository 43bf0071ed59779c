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


def test_all_is_every_split_of_a_dataset_and_of_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--source.split all` of a dataset with train and test once read train alone, and said nothing."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tables = [datasets.Dataset.from_dict({"image": values}) for values in ([png(1), png(2)], [png(3)])]
    datasets.DatasetDict(train=tables[0], test=tables[1]).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    for name, table in zip(("train", "test"), tables, strict=True):
        table.to_parquet(tmp_path / "parquet" / f"{name}.parquet")
    for folder, streaming in (("saved", False), ("saved", True), ("parquet", False), ("parquet", True)):
        source = open_source(f"hf:{tmp_path / folder}", SourceOptions(split="all", streaming=streaming))
        assert sorted(red(sample.image()) for sample in source) == [1, 2, 3] and not source.has_splits
        assert len(open_source(f"hf:{tmp_path / folder}", SourceOptions(streaming=streaming), split="all")) == 3
    (train, test), scenes = (
        (open_source("scenes", split=s) for s in ("train", "test")),
        open_source("scenes", split="all"),
    )
    assert len(scenes) == len(train) + len(test)
    places = [0, len(train) - 1, len(train), len(train) + 7]
    assert [scenes.sample_id(i) for i in places[:2]] == [train.sample_id(i) for i in places[:2]]
    assert [scenes.sample_id(i) for i in places[2:]] == [test.sample_id(0), test.sample_id(7)]
    assert np.array_equal(np.asarray(scenes[len(train) + 7].image()), np.asarray(test[7].image()))
    assert scenes.labels()[places].tolist() == [scenes[i].label for i in places]


def test_a_named_caption_of_a_shard_is_the_one_in_the_json(tmp_path: Path) -> None:
    """Beside a .txt, as img2dataset writes both, `--source.caption long` once still gave the .txt."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i in range(2):
            add(tar, f"{i}.png", png(i))
            add(tar, f"{i}.txt", b"short")
            add(tar, f"{i}.json", json.dumps({"long": f"a longer one, {i}"} if i else {}).encode())
    assert [sample.caption for sample in open_source(f"tar:{tmp_path}/x.tar")] == ["short", "short"]
    named = open_source(f"tar:{tmp_path}/x.tar", SourceOptions(caption="long"))
    assert [sample.caption for sample in named] == [None, "a longer one, 1"]
    with pytest.raises(ConfigError, match=r"--source\.caption: no \.json member has a field 'lang'"):
        open_source(f"tar:{tmp_path}/x.tar", SourceOptions(caption="lang"))


def test_pictures_with_two_dots_in_their_names_are_counted(tmp_path: Path) -> None:
    """A shard of 0.png and photo.v2.png once opened as one image without a word about the other."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("0.png", "0.mask.png", "photo.v2.PNG", "text.v2.txt"):
            add(tar, name, png(1))
    source = open_source(f"tar:{tmp_path}/x.tar")
    assert len(source) == 1 and "(1 pictures left out, the first: x.tar/photo.v2.png;" in source.describe()
    named = open_source(f"tar:{tmp_path}/x.tar", SourceOptions(image="v2.png"))
    assert [sample.id for sample in named] == ["x.tar/photo.v2.png"]


def test_numbers_with_gaps_are_classes_and_fractions_are_not(tmp_path: Path) -> None:
    """pandas writes whole numbers with a gap among them as floats; they once gave no labels and no message."""
    cells = {"image": [png(1), png(2), png(3)], "kind": [3.0, None, 10.0], "weight": [0.5, 1.0, None]}
    table = datasets.Dataset.from_dict({**cells, "none": [None, None, float("nan")]})
    table.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "train.parquet")
    for folder, streaming in (("saved", False), ("parquet", True)):
        source = open_source(f"hf:{tmp_path / folder}", SourceOptions(label="kind", streaming=streaming))
        assert source.classes == ("3", "10") and source.labels().tolist() == [0, -1, 1]
        for column, said in (("weight", "the column holds 0.5"), ("none", "all 3 rows of the column are empty")):
            with pytest.raises(ConfigError, match=f"--source.label {column}: .*{said}"):
                open_source(f"hf:{tmp_path / folder}", SourceOptions(label=column, streaming=streaming))


def test_a_stream_finds_the_column_of_classes_by_its_type_too(tmp_path: Path) -> None:
    """Without --source.streaming a ClassLabel column of any name gave the labels, with it none."""
    features = datasets.Features({"image": datasets.Image(), "genus": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"image": [{"bytes": png(1), "path": None}] * 2, "genus": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    source = open_source(f"hf:{tmp_path}", SourceOptions(streaming=True))
    assert source.classes == ("ant", "bee") and source.labels().tolist() == [1, 0]


def test_a_setting_is_fine_where_one_of_the_sources_reads_it(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(1))
    (tmp_path / "b.csv").write_text("path,species\nphotos/a.png,owl\n")
    both = [f"{tmp_path}/photos", f"{tmp_path}/b.csv"]
    assert open_sources(both, SourceOptions(label="species")).classes == ("owl",)
    assert len(open_sources(both, SourceOptions(split="all"))) == 2
    with pytest.raises(ConfigError, match=r"--source.subset en says nothing about any of the sources given"):
        open_sources(both, SourceOptions(subset="en"))
