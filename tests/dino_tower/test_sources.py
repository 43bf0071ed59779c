"""Every spelling of SOURCE: the same samples whoever reads them, and one clear line when there is nothing to read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.scenes import make_scene
from dino_tower.sources import (
    Mixture,
    SourceOptions,
    load_batches,
    open_source,
    open_sources,
    probe,
    rank_batches,
    read_batches,
)

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
    pairs = list(enumerate(zip(rows, kinds, strict=True)))
    (root / "tabs.txt").write_text("".join(f"{row}\t{kind}\tpicture {i}\n" for i, (row, kind) in pairs))
    table = "".join(f'"{row}",{kind},picture {i}\n' for i, (row, kind) in pairs)
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
    first, second = (
        list(read_batches(source, red, batch_size=3, rank=r, world=2, workers=w)) for r, w in ((0, 2), (1, 0))
    )
    assert [batch.items for batch in first] == [[0, 2], [6]] and [batch.items for batch in second] == [[1, 3, 5]]
    assert [batch.ids for batch in first] == [["0.png", "2.png"], ["6.png"]]
    assert first[0].indices.tolist() == [0, 2] and first[0].labels.tolist() == [-1, -1]
    ((name, reason),) = first[0].skipped
    assert name == "4.png" and "not an image" in reason and not first[1].skipped


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


def test_probe_reads_before_anything_is_written(tmp_path: Path, everything: dict) -> None:
    assert probe(everything["folder"], 3) == [(everything["folder"].sample_id(i), (5, 4)) for i in (0, 11, 22)]
    for i in range(20):
        (tmp_path / f"{i:02d}.jpg").write_text("words")
    with pytest.raises(ConfigError, match=r"none of 20 images tried could be read; 00.jpg: not an image"):
        probe(open_source(str(tmp_path)))
    (tmp_path / "13.jpg").write_bytes(png(1))
    assert probe(open_source(str(tmp_path))) == [("13.jpg", (5, 4))]


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
    with pytest.raises(ConfigError, match=r"'frok'.*fork, spawn, forkserver"):
        list(read(workers=1, start_method="frok"))
