"""Every spelling of SOURCE: the same samples whoever reads them, and one clear line when there is nothing to read."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.scenes import make_scene
from dino_tower.sources import (
    Mixture,
    SourceOptions,
    labels_among,
    load_batches,
    open_source,
    open_sources,
    probe,
    rank_batches,
    read_batches,
)
from dino_tower.sources.measure import measure_mean_std
from dino_tower.sources.shards import expand_braces
from dino_tower.sources.strings import PathsBuilder, Strings

COUNT = 23  # prime: no number of ranks, workers or batches divides it
KINDS = ("bee", "ant", "cat")
FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=sorted(KINDS)), "text": datasets.Value("string")}
)


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


def write_all(root: Path) -> None:
    """The same 23 pictures in every form; picture i is red i, of kind i % 3, captioned "picture i"."""
    kinds = [KINDS[i % 3] for i in range(COUNT)]
    for i, kind in enumerate(kinds):
        path = root / "folder" / kind / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    rows = [f"folder/{kind}/{i:02d}.png" for i, kind in enumerate(kinds)]
    (root / "plain.txt").write_text("\n".join(rows))
    (root / "tabs.txt").write_text("".join(f"{r}\t{k}\tpicture {i}\n" for i, (r, k) in enumerate(zip(rows, kinds))))
    table = "".join(f'"{row}",{kind},picture {i}\n' for i, (row, kind) in enumerate(zip(rows, kinds)))
    (root / "table.csv").write_text("file,label,caption\n" + table)
    (root / "shards").mkdir()
    for number, share in enumerate((range(0, 10), range(10, 11), range(11, COUNT))):
        with tarfile.open(root / "shards" / f"part-{number:03d}.tar", "w") as tar:
            for i in share:
                add(tar, f"{i:05d}.png", png(i))
                add(tar, f"{i:05d}.cls", kinds[i].encode())
                add(tar, f"{i:05d}.txt", f"picture {i}".encode())
    cells = {
        "image": [{"bytes": png(i), "path": None} for i in range(COUNT)],
        "label": [sorted(KINDS).index(kind) for kind in kinds],
        "text": [f"picture {i}" for i in range(COUNT)],
    }
    whole = datasets.Dataset.from_dict(cells, features=FEATURES)
    whole.save_to_disk(str(root / "saved"))
    datasets.DatasetDict(train=whole, test=whole.select(range(4))).save_to_disk(str(root / "splits"))
    (root / "parquet" / "data").mkdir(parents=True)
    whole.select(range(9)).to_parquet(root / "parquet/data/train-00000-of-00002.parquet", batch_size=4)
    whole.select(range(9, COUNT)).to_parquet(root / "parquet/data/train-00001-of-00002.parquet", batch_size=4)
    whole.select(range(4)).to_parquet(root / "parquet/data/test-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("sources")
    datasets.disable_progress_bars()
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = root / "cache"
    write_all(root)
    yield root
    datasets.config.HF_DATASETS_CACHE = before


STREAM = SourceOptions(streaming=True, window=8)
# name: (spelling, options, do its samples have labels, captions)
SPELLINGS: dict[str, tuple[str, SourceOptions, bool, bool]] = {
    "folder": ("{root}/folder", SourceOptions(), True, False),
    "plain list": ("{root}/plain.txt", SourceOptions(), False, False),
    "list with tabs": ("{root}/tabs.txt", SourceOptions(), True, True),
    "csv": ("{root}/table.csv", SourceOptions(), True, True),
    "tar glob": ("tar:{root}/shards/*.tar", SourceOptions(), True, True),
    "tar braces": ("tar:{root}/shards/part-{{000..002}}.tar", SourceOptions(), True, True),
    "tar streamed": ("tar:{root}/shards/*.tar", STREAM, True, True),
    "save_to_disk": ("hf:{root}/saved", SourceOptions(), True, True),
    "save_to_disk streamed": ("hf:{root}/saved", STREAM, True, True),
    "dataset dict": ("hf:{root}/splits:train", SourceOptions(), True, True),
    "parquet": ("hf:{root}/parquet", SourceOptions(), True, True),
    "parquet streamed": ("hf:{root}/parquet", STREAM, True, True),
}


def open_named(root: Path, name: str):
    spelling, options, _, _ = SPELLINGS[name]
    return open_source(spelling.format(root=root), options)


@pytest.fixture(scope="module")
def everything(root: Path) -> dict:
    every = {name: open_named(root, name) for name in SPELLINGS}
    every["scenes"] = open_source("scenes:easy", SourceOptions(max_samples=COUNT))
    every["mixture"] = Mixture([every["folder"], every["tar streamed"], every["save_to_disk"]])
    return every


@pytest.mark.parametrize("name", SPELLINGS)
def test_pictures_labels_and_captions(everything: dict, name: str) -> None:
    source = everything[name]
    labelled, captioned = SPELLINGS[name][2:]
    samples = list(source)
    assert len(source) == len(samples) == COUNT
    values = [red(sample.image()) for sample in samples]
    assert sorted(values) == list(range(COUNT))
    assert [source.sample_id(i) for i in range(COUNT)] == [sample.id for sample in samples]
    assert len({sample.id for sample in samples}) == COUNT
    for value, sample in zip(values, samples, strict=True):
        assert sample.sized()[1] == (5, 4)
        assert sample.caption == (f"picture {value}" if captioned else None)
        assert (sample.label is not None) == labelled
        if labelled:
            assert source.classes[sample.label] == KINDS[value % 3]
    if labelled:
        assert source.classes == ("ant", "bee", "cat")
        np.testing.assert_array_equal(source.labels(), [sample.label for sample in samples])
    else:
        assert source.labels() is None and source.classes is None
    assert str(COUNT) in source.describe() and "\n" not in source.describe()
    with pytest.raises(IndexError):
        source[COUNT]


def test_scenes() -> None:
    source = open_source("scenes", SourceOptions(max_samples=30))
    assert len(source) == 30 and len(source.classes) == 10
    sample, scene = source[7], make_scene("easy", 7, "train")
    np.testing.assert_array_equal(np.asarray(sample.image()), scene.image)
    assert sample.label == scene.kind and sample.caption == scene.caption
    np.testing.assert_array_equal(source.labels(), [make_scene("easy", i, "train").kind for i in range(30)])
    test = open_source("scenes:easy", SourceOptions(), "test")
    np.testing.assert_array_equal(np.asarray(test[0].image()), make_scene("easy", 0, "test").image)
    assert len(open_source("scenes", SourceOptions())) == 10_000


class ReadAny:
    """Reads from any of several sources, so that one pool of workers serves them all."""

    def __init__(self, sources: dict) -> None:
        self.sources = sources

    def __call__(self, key: tuple[tuple[int, str], list[int]]) -> tuple[tuple[int, str], list[tuple[str, int]]]:
        label, indices = key
        samples = [self.sources[label[1]][index] for index in indices]
        return label, [(sample.id, int(np.asarray(sample.image()).sum())) for sample in samples]


@pytest.mark.parametrize("workers, method", [(0, None), (2, "fork"), (2, "spawn")])
def test_an_epoch_holds_every_id_once(everything: dict, workers: int, method: str | None) -> None:
    """Nothing dropped, nothing twice, for every source, one and two ranks and every kind of worker."""
    keys = [
        ((world, name), batch.tolist())
        for world in (1, 2)
        for name, source in everything.items()
        for rank in range(world)
        for batch in rank_batches(len(source), 4, rank, world)
    ]
    found: dict[tuple[int, str], list] = {label: [] for label, _ in keys}
    for label, read in load_batches(ReadAny(everything), keys, workers=workers, start_method=method):
        found[label] += read
    assert len(found) == 2 * len(everything) == 2 * (len(SPELLINGS) + 2)
    for (world, name), read in found.items():
        expected = [(sample.id, int(np.asarray(sample.image()).sum())) for sample in everything[name]]
        assert sorted(read) == sorted(expected), (world, name)
        assert len({one for one, _ in expected}) == len(everything[name])


def test_read_batches_in_order_with_the_unreadable_left_out(root: Path, tmp_path: Path) -> None:
    for i in range(7):
        (tmp_path / f"{i}.png").write_bytes(b"no picture" if i == 4 else png(i))
    source = open_source(str(tmp_path))
    first, second = (list(read_batches(source, red, batch_size=3, rank=r, world=2, workers=w)) for r, w in ((0, 2), (1, 0)))
    assert [batch.items for batch in first] == [[0, 2], [6]] and [batch.items for batch in second] == [[1, 3, 5]]
    assert [batch.ids for batch in first] == [["0.png", "2.png"], ["6.png"]]
    assert first[0].indices.tolist() == [0, 2] and first[0].labels.tolist() == [-1, -1]
    (name, reason), = first[0].skipped
    assert name == "4.png" and "not an image" in reason and not first[1].skipped


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
    with pytest.raises(ConfigError, match="'tset'.*did you mean 'test'"):
        open_source(str(tmp_path), SourceOptions(split="tset"))
    with pytest.raises(ConfigError, match="has no train and test"):
        open_source(str(tmp_path / "train"), SourceOptions(split="test"))


def test_hash_split_is_disjoint_complete_and_stable(root: Path) -> None:
    spelling = f"{root}/folder"
    whole = open_sources(spelling)
    train, test = (open_sources(spelling, None, split, hold_out=0.4) for split in ("train", "test"))
    ids = [{sample.id for sample in source} for source in (whole, train, test)]
    assert ids[1] | ids[2] == ids[0] and not ids[1] & ids[2] and len(ids[2]) in range(4, 15)
    more = open_sources([spelling, f"{root}/plain.txt"], None, "test", hold_out=0.4)
    assert ids[2] == {one.removeprefix(f"{test.name}/") for one in (s.id for s in more) if one.startswith(test.name)}
    streamed = open_sources(f"tar:{root}/shards/*.tar", STREAM, "train", hold_out=0.4)
    assert streamed.stretches.sum() == len(streamed) < COUNT


def test_a_split_in_the_spelling_is_split_again_for_evaluation(root: Path) -> None:
    """`hf:DIR:test` given for evaluation once played both train and test: every neighbour was the picture itself."""
    for spelling in (f"hf:{root}/splits:train", f"hf:{root}/parquet:train"):
        train, test = (open_sources(spelling, None, split, hold_out=0.3) for split in ("train", "test"))
        assert not {s.id for s in train} & {s.id for s in test}
    own = open_sources(f"hf:{root}/splits", None, "test", hold_out=0.3)
    assert len(own) == 4 and own.has_splits


def test_mixtures_join_classes_and_keep_ids_apart(everything: dict) -> None:
    mixture = everything["mixture"]
    assert len(mixture) == 3 * COUNT and mixture.classes == ("ant", "bee", "cat")
    assert len({sample.id for sample in mixture}) == 3 * COUNT
    for index in range(0, 3 * COUNT, 7):
        sample = mixture[index]
        assert mixture.classes[sample.label] == KINDS[red(sample.image()) % 3]
        assert mixture.sample_id(index) == sample.id
    np.testing.assert_array_equal(mixture.labels(), [sample.label for sample in mixture])
    twice = Mixture([everything["folder"], everything["folder"]])
    assert len({sample.id for sample in twice}) == 2 * COUNT
    assert Mixture([everything["folder"]] * 3, (1, 1, 4)).draws() == [12, 11, 46]
    for weights in ((1.0,), (1.0, -1.0, 1.0), (0.0, 1.0, 1.0)):
        with pytest.raises(ConfigError, match="weights"):
            Mixture(mixture.sources, weights)


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
    (name, reason), = read[0].skipped
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


def test_probe_reads_before_anything_is_written(tmp_path: Path, everything: dict) -> None:
    assert probe(everything["folder"], 3) == [(everything["folder"].sample_id(i), (5, 4)) for i in (0, 11, 22)]
    for i in range(20):
        (tmp_path / f"{i:02d}.jpg").write_text("words")
    with pytest.raises(ConfigError, match=r"none of 20 images tried could be read; 00.jpg: not an image"):
        probe(open_source(str(tmp_path)))
    (tmp_path / "13.jpg").write_bytes(png(1))
    assert probe(open_source(str(tmp_path))) == [("13.jpg", (5, 4))]


def test_mean_and_std_are_measured(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 255)):
        Image.new("RGB", (8, 8), (value, 51, 102)).save(tmp_path / f"{name}.png")
    mean, std = measure_mean_std(open_source(str(tmp_path)))
    assert mean == pytest.approx((0.5, 0.2, 0.4), abs=1e-4) and std == pytest.approx((0.5, 0, 0), abs=1e-3)


def prepare_mistakes(base: Path) -> None:
    for name in ("empty", "texts", "pictures", "tables"):
        (base / name).mkdir()
    for i in range(3):
        (base / "texts" / f"{i}.txt").write_text("words")
        (base / "pictures" / f"{i}.png").write_bytes(png(i))
    (base / "tables" / "part.parquet").write_bytes(b"PAR1")
    (base / "empty.csv").write_text("")
    (base / "header.csv").write_text("path,label\n")
    (base / "two.csv").write_text("where,what\na.png,b\n")
    (base / "ragged.csv").write_text("path,label\na.png\nb.png,1,2\n")
    (base / "words.tar").write_text("this is no tar file " * 100)
    with tarfile.open(base / "packed.tar", "w:gz") as tar:
        add(tar, "a.png", png(1))
    with tarfile.open(base / "texts.tar", "w") as tar:
        add(tar, "a.txt", b"words")


MISTAKES = [
    ("{base}/empty", {}, "the folder is empty"),
    ("{base}/picturs", {}, "does not exist; did you mean '{base}/pictures'"),
    ("{base}/nowhere/at/all", {}, "'{base}' has no 'nowhere'"),
    ("{base}/texts", {}, "no images among its 3 files (3 .txt); read are .apng"),
    ("{base}/tables", {}, "try --data hf:{base}/tables"),
    ("{base}/pictures/0.png", {}, "is a file; give a folder"),
    ("{base}/gone.csv", {}, "does not exist"),
    ("{base}/empty.csv", {}, "the list is empty"),
    ("{base}/header.csv", {}, "the list has no rows"),
    ("{base}/two.csv", {}, "which column holds the images? Name it with --source.image; choices: where, what"),
    ("{base}/two.csv", {"image": "were"}, "no column 'were'; did you mean 'where'? choices: what, where"),
    ("{base}/two.csv", {"image": "where", "label": "kind"}, "no column 'kind'"),
    ("{base}/ragged.csv", {}, "does not parse as a table"),
    ("hff:birds", {}, "no kind of source 'hff:'; did you mean 'hf:'? choices: hf:, scenes:, tar:"),
    ("", {}, "--data is empty"),
    ("scenes:eazy", {}, "no level of scenes 'eazy'; did you mean 'easy'"),
    ("scenes", {"split": "dev"}, "no split of scenes 'dev'"),
    ("tar:", {}, "give the shards after the colon"),
    ("tar:{base}/*.tgz", {}, "no file matches"),
    ("tar:{base}/word.tar", {}, "did you mean '{base}/words.tar'"),
    ("tar:{base}/words.tar", {}, "is not a tar file"),
    ("tar:{base}/packed.tar", {}, "is compressed"),
    ("tar:{base}/texts.tar", {}, "no images in 1 shards; found: txt"),
    ("tar:{base}/texts.tar", {"image": "jpg"}, "no member extension 'jpg'"),
    ("tar:{base}", {}, "for the shards in it give tar:{base}/*.tar"),
    ("hf:", {}, "give a Hub name or a folder after the colon"),
    ("hf:{base}/pictures", {}, "for a folder of image files leave out hf:"),
    ("hf:{base}/tables", {}, "cannot be opened"),
    ("hf:{base}/tables", {"streaming": True}, "is not a parquet file"),
    ("hf:{base}/gone", {}, "does not exist"),
    ("hf:nobody/nothing", {}, "looked up on the Hub"),
    ("hf:{root}/splits:tset", {}, "no split 'tset'; did you mean 'test'? choices: test, train"),
    ("hf:{root}/saved", {"split": "validation"}, "no split 'validation'"),
    ("hf:{root}/saved", {"label": "lable"}, "no column 'lable'; did you mean 'label'"),
    ("hf:{root}/parquet", {"streaming": True, "image": "imag"}, "no column 'imag'; did you mean 'image'"),
    ("{base}/pictures", {"max_samples": 0}, "--source.max-samples 0"),
]


def test_every_mistake_is_one_line_that_says_what_to_do(root: Path, tmp_path: Path) -> None:
    prepare_mistakes(tmp_path)
    for spelling, settings, said in MISTAKES:
        with pytest.raises(ConfigError) as caught:
            open_source(spelling.format(base=tmp_path, root=root), SourceOptions(**settings))
        line = str(caught.value)
        assert said.format(base=tmp_path) in line, (spelling, line)
        assert "\n" not in line and len(line) < 600
    with pytest.raises(ConfigError, match="--data is missing"):
        open_sources([])


def test_what_may_not_be_read(tmp_path: Path) -> None:
    """As a user without rights, in a process of its own when the tests run as root: root may read everything."""
    shut, folder, table = tmp_path / "a" / "shut.png", tmp_path / "b", tmp_path / "list.txt"
    for directory in (tmp_path / "a", folder):
        directory.mkdir()
    for path in (shut, tmp_path / "a" / "open.png", folder / "inside.png"):
        path.write_bytes(png(1))
    table.write_text("a/open.png\n")
    for path in (shut, table, folder):
        path.chmod(0)
    code = f"""
import os
import torch, torch.utils.data
from PIL import Image
from dino_tower.sources import open_source, read_batches
Image.init()  # the interpreter itself may lie where nobody else can read
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
source = open_source({str(tmp_path / "a")!r})
batch, = read_batches(source, lambda image: image.size, batch_size=4)
print(batch.ids, batch.skipped)
print(open_source({str(tmp_path)!r}).describe())
for spelling in ({str(folder)!r}, {str(table)!r}):
    try:
        open_source(spelling)
    except ValueError as error:
        print(error)
"""
    above = tmp_path
    while above != Path(tempfile.gettempdir()) and above != above.parent:
        above.chmod(above.stat().st_mode | 0o055)
        above = above.parent
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    folder.chmod(0o755)
    lines = ran.stdout.splitlines()
    assert lines[0] == "['open.png'] [('shut.png', 'cannot be opened: permission denied')]", ran.stderr
    assert "1 folders may not be listed, the first: b" in lines[1]
    assert "b': permission denied" in lines[2]
    assert "cannot be read: permission denied" in lines[3]


def test_strings_hold_any_name_and_travel_as_a_file_when_large(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["", "plain.png", "Bär/π.jpg", os.fsdecode(b"\xff\xfe.png")] + [f"n{i}" * (i % 5) for i in range(500)]
    strings = Strings.of(names)
    assert list(strings) == names and list(Strings.of([])) == []
    monkeypatch.setattr("dino_tower.sources.strings.INLINE_BYTES", 100)
    sent = pickle.dumps(strings)
    assert len(sent) < 400
    received = pickle.loads(sent)
    assert list(received) == names and isinstance(received.data, np.memmap)
    place = strings.parts._file
    assert place.exists()
    del strings
    assert not place.exists()


def test_paths_keep_each_folder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_tower.sources.strings.MAX_FOLDERS", 20)
    builder = PathsBuilder()
    paths = ["top", "/abs/x", "a//b"] + [f"d{i % 30}/f{i}" for i in range(100)]
    for part in (paths[:5], paths[5:]):
        builder.extend([path.encode() for path in part])
    built = builder.done()
    assert [built[i] for i in range(len(paths))] == paths and len(built.folders) == 20


LIST_ROWS = 400_000


def test_long_lists_take_bytes_not_objects(tmp_path: Path) -> None:
    """Ten million rows must stay below 1.5 GB and 60 s: measured here on a 25th of them, in a fresh process."""
    for kind, header, end in (("txt", "", "\n"), ("csv", "path,label\n", ",class_{:03d}\n")):
        with (tmp_path / f"rows.{kind}").open("w") as file:
            file.write(header)
            for i in range(LIST_ROWS):
                file.write(f"images/part-{i % 1000:04d}/photograph_{i:010d}.jpg" + end.format(i % 1000))
    code = f"""
import re, time, pyarrow.csv
from dino_tower.sources import open_source
def megabytes(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
for kind in ("txt", "csv"):
    before, start = megabytes("VmRSS"), time.process_time()
    source = open_source({str(tmp_path)!r} + "/rows." + kind)
    print(time.process_time() - start, megabytes("VmHWM") - before, source[1234].id)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    for line in ran.stdout.splitlines():
        seconds, grown, name = line.split()
        assert name == "images/part-0234/photograph_0000001234.jpg"
        assert float(seconds) < 60 / 10_000_000 * LIST_ROWS
        # 80 bytes a row would be 0.8 GB for ten million; the blocks being parsed do not grow with the list.
        assert int(grown) < 80 * LIST_ROWS / 2**20 + 100


def test_reading_touches_no_global_random_state(everything: dict) -> None:
    import random

    import torch

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    for workers in (0, 2):
        list(read_batches(everything["folder"], red, batch_size=4, workers=workers, start_method="fork"))
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_wrong_workers(everything: dict) -> None:
    read = partial(read_batches, everything["folder"], red, batch_size=4)
    with pytest.raises(ConfigError, match="--workers -1"):
        list(read(workers=-1))
    with pytest.raises(ConfigError, match="'frok'.*fork, spawn, forkserver"):
        list(read(workers=1, start_method="frok"))
