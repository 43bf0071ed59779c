"""Features on disk: right numbers, read once, kept apart where anything differs, never larger than allowed."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_tower import load_tower
from dino_tower.errors import ConfigError
from dino_tower.eval.cache import META, Cache, key_of
from dino_tower.eval.datasets import Dataset, open_dataset
from dino_tower.eval.extraction import Feature, Processes, features_of
from dino_tower.eval.geometry import Frame
from dino_tower.eval.raw import RawPixels
from dino_tower.eval.view import LAYERS, REDUCED, Projection, Source, View, identity_of

TOWER = "builtin:scenes"
SQUARE = Frame("square", "tokens", tokens=5, pixels=64)


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    whole = open_dataset("scenes", "test")
    return replace(whole, items=[whole[i] for i in range(7)])


@pytest.fixture(scope="module")
def tower():  # type: ignore[no-untyped-def]
    return load_tower(TOWER)


@pytest.fixture
def source(tower, tmp_path: Path) -> Source:  # type: ignore[no-untyped-def]
    return Source(tower, Cache(tmp_path / "cache"), dtype="float32")


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_are_the_tower_s_own_patches(layer: str, source: Source, pictures: Dataset) -> None:
    """Every layer of LAYERS, read back from disk, against the tower called by hand on one picture."""
    view = View(source, SQUARE, layer, reduce_on=pictures)
    rows = view.rows(pictures)
    if layer == REDUCED:
        assert rows.width == source.tower.width - 1  # after a layer norm features do not differ in one direction
        return
    parts = LAYERS[layer](source.tower.depth)
    for place in (0, 6):
        pixels = source.tower.pixels([pictures[place].image()], (40, 40))
        by_hand = [source.tower.layers(pixels, [n], norm=norm)[0].patches[0] for n, norm in parts]
        assert (rows[place] - torch.cat(by_hand, -1)).abs().max() < 1e-5
    assert rows.stack([0, 1]).shape == (2, 5, 5, source.tower.width * len(parts))


def test_layers_before_and_after_the_norm_come_from_one_forward(tower) -> None:  # type: ignore[no-untyped-def]
    pixels = tower.pixels([pictures_image()], (32, 32))
    depth = tower.depth
    wanted = [Feature("rows", depth), Feature("rows", depth, norm=False), Feature("vectors", depth)]
    calls = []
    hook = tower.model.register_forward_hook(lambda *_: calls.append(1))
    found = features_of(tower, pixels, wanted)
    hook.remove()
    assert len(calls) == 1
    out = tower(pixels)
    assert (found[wanted[0]] - out.patches).abs().max() < 1e-6
    assert (found[wanted[2]] - out.cls).abs().max() < 1e-6
    assert (found[wanted[1]] - tower.layers(pixels, [depth], norm=False)[0].patches).abs().max() < 1e-6


def pictures_image():  # type: ignore[no-untyped-def]
    return open_dataset("scenes", "test")[3].image()


def test_pictures_keep_their_shape_under_native_geometry(source: Source, tmp_path: Path) -> None:
    """Equal tokens: as many patches as a patch of 16 pixels makes, whatever the tower's own is."""
    from PIL import Image

    root = tmp_path / "photos"
    for name, size in (("a", (96, 64)), ("b", (64, 128))):
        for split in ("train", "test"):
            path = root / split / name / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", size, (10, 200, 90)).save(path)
    data = open_dataset(str(root), "test")
    rows = View(source, Frame("native", "tokens")).rows(data)
    assert [rows.grid(i) for i in range(2)] == [(4, 6), (8, 4)]
    rows = View(source, Frame("native", "pixels")).rows(data)
    assert [rows.grid(i) for i in range(2)] == [(8, 12), (16, 8)]  # the built-in tower's patch is 8
    with pytest.raises(ConfigError, match="unlike grids"):
        rows.stack([0, 1])


def test_a_part_of_a_data_set_shares_the_features_of_the_whole(source: Source, pictures: Dataset) -> None:
    view = View(source, SQUARE)
    whole = view.rows(pictures)
    read = source.pictures_read
    part = pictures.part([4, 2], "slice").part([1], "slice of it")
    assert torch.equal(view.rows(part)[0], whole[2])
    assert torch.equal(view.vectors(pictures.part([6], "x")), view.vectors(pictures)[6:])
    assert source.pictures_read == read  # the class tokens came with the patches


def test_whatever_the_numbers_depend_on_has_an_entry_of_its_own(tower, tmp_path: Path, pictures: Dataset) -> None:  # type: ignore[no-untyped-def]
    """Weights, processor, size, layer, precision, pictures: a change of any makes another key."""
    cache = Cache(tmp_path)
    changed = load_tower(TOWER)
    next(iter(changed.model.parameters())).data[0] += 1e-6
    other = load_tower(TOWER)
    other.processor.image_mean = [0.4, 0.4, 0.4]
    feature = Feature("rows", tower.depth)
    variants = {
        "as it is": (Source(tower, cache), pictures, SQUARE, feature),
        "weights": (Source(changed, cache), pictures, SQUARE, feature),
        "processor": (Source(other, cache), pictures, SQUARE, feature),
        "size": (Source(tower, cache), pictures, SQUARE._replace(tokens=6), feature),
        "layer": (Source(tower, cache), pictures, SQUARE, Feature("rows", 1)),
        "norm": (Source(tower, cache), pictures, SQUARE, feature._replace(norm=False)),
        "dtype": (Source(tower, cache, "float32"), pictures, SQUARE, feature),
        "pictures": (Source(tower, cache), replace(pictures, items=pictures.items[:6]), SQUARE, feature),
    }
    keys = {name: key_of(s._facts(data, frame, f)) for name, (s, data, frame, f) in variants.items()}
    assert len(set(keys.values())) == len(variants)
    assert identity_of(tower) == identity_of(load_tower(TOWER)) != identity_of(changed)
    assert identity_of(RawPixels()) != identity_of(tower)


def test_a_photo_that_was_changed_on_disk_is_read_again(source: Source, tmp_path: Path) -> None:
    from PIL import Image

    root = tmp_path / "photos"
    for split in ("train", "test"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), (0, 0, 0)).save(root / split / name / "0.png")
    before = View(source, SQUARE).rows(open_dataset(str(root), "test"))[0]
    time.sleep(0.01)
    Image.new("RGB", (40, 40), (255, 255, 255)).save(root / "test" / "a" / "0.png")
    after = View(source, SQUARE).rows(open_dataset(str(root), "test"))[0]
    assert (before - after).abs().max() > 1e-3


def test_the_cache_drops_what_was_read_longest_ago(tmp_path: Path) -> None:
    """Three entries of 4 kB in a cache of 10 kB: the one not looked at for longest goes; those in use never do."""

    def fill(cache: Cache, key: str) -> None:
        np.save(cache.begin(key) / "data.npy", np.zeros(1000, np.float32))
        cache.finish(key, {"key": key})
        time.sleep(0.02)

    keys = [key_of({"n": n}) for n in range(3)]
    for key in keys[:2]:
        fill(Cache(tmp_path, 10_000), key)
    assert Cache(tmp_path, 10_000).find(keys[0])
    time.sleep(0.02)
    fill(Cache(tmp_path, 10_000), keys[2])
    assert [Cache(tmp_path).find(key) is not None for key in keys] == [True, False, True]
    busy = Cache(tmp_path, 1)
    fill(busy, keys[1])
    assert busy.find(keys[1])  # larger than the limit, but this benchmark needs it


def test_what_an_interrupted_run_left_is_not_taken_for_features(source: Source, pictures: Dataset) -> None:
    view = View(source, SQUARE)
    rows = view.rows(pictures)[0]
    for entry in [meta.parent for meta in source.cache.root.glob(f"??/*/{META}")]:
        entry.rename(entry.with_name(f"{entry.name}.partial"))  # a process that died before it gave it its name
    read = source.pictures_read
    assert torch.equal(View(source, SQUARE).rows(pictures)[0], rows)
    assert source.pictures_read == read + len(pictures)


def test_of_two_that_want_the_same_one_reads_and_the_other_waits(tmp_path: Path, pictures: Dataset) -> None:
    """The lock is the file system's: two handles on it exclude each other as two processes do."""

    def work(_: int) -> int:
        source = Source(load_tower(TOWER), Cache(tmp_path))
        View(source, SQUARE).rows(pictures)
        return source.pictures_read

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(work, range(2))) == [0, len(pictures)]


def test_few_pictures_have_few_directions() -> None:
    """256 directions were taken of 100 pictures: those in which they do not differ reached 1e7 once standardised."""
    rows = torch.randn(300, 384, generator=torch.Generator().manual_seed(0))
    project = Projection(rows[:100])
    train, test = project(rows[:100]), project(rows[100:])
    assert project.width == train.shape[1] == 99
    assert ((test - train.mean(0)) / train.std(0)).abs().max() < 20


def test_a_picture_that_one_process_cannot_read_stops_all_of_them(source: Source, pictures: Dataset) -> None:
    """The other one went on, out of step, and kept zeros for the first one's pictures as finished features."""
    broken = replace(pictures[3], payload=lambda: b"no picture")
    data = replace(pictures, name="broken", items=[*pictures.items[:3], broken, *pictures.items[4:]])
    barrier = threading.Barrier(2, timeout=60)

    def work(rank: int) -> list[str]:
        own = Source(load_tower(TOWER), source.cache, "float32", Processes(rank, 2, barrier.wait))
        said = []
        for part in (data, data, pictures):  # still in step after it
            try:
                View(own, SQUARE).rows(part)
                said.append("read")
            except ConfigError as error:
                said.append(str(error))
        return said

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert first == second and first[2] == "read" and "test-000003" in first[0] and first[1] == first[0]
    with pytest.raises(ConfigError, match="test-000003"):
        View(source, SQUARE).rows(data)
    assert source.pictures_read < len(data)
    alone = Source(source.tower, Cache(source.cache.root.with_name("alone")), "float32")
    assert torch.equal(View(source, SQUARE).rows(pictures)[3], View(alone, SQUARE).rows(pictures)[3])


def test_features_too_large_for_half_precision_are_told(tower, tmp_path: Path, pictures: Dataset) -> None:  # type: ignore[no-untyped-def]
    """They were looked at before the cast: 70,000 is finite, and was kept as infinity."""
    large = load_tower(TOWER)
    for name, parameter in large.model.named_parameters():
        if name.startswith("layernorm.") and name.endswith("bias"):
            parameter.data.fill_(70_000.0)
    with pytest.raises(ConfigError, match=r"reach 7e\+04, too much for float16; give --feature-dtype float32"):
        View(Source(large, Cache(tmp_path)), SQUARE).rows(pictures)
    assert View(Source(large, Cache(tmp_path), "float32"), SQUARE).rows(pictures)[0].isfinite().all()


def test_memory_does_not_grow_with_the_number_of_pictures(
    tower,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    """Peak of Python's own allocations for 40 and for 240 pictures in batches of four: batches come and go."""
    monkeypatch.setattr("dino_tower.eval.extraction.TOKENS_AT_A_TIME", 100)
    whole = open_dataset("scenes", "test")
    View(Source(tower, Cache(tmp_path / "first")), SQUARE).rows(replace(whole, items=whole.items[:4]))
    peaks = []
    for count in (40, 240):
        data = replace(whole, items=whole.items[:count], name=f"scenes {count}")
        source = Source(tower, Cache(tmp_path / str(count)))
        gc.collect()
        tracemalloc.start()
        View(source, SQUARE).rows(data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    kept = 200 * 25 * tower.width * 2  # bytes of the other pictures' features, which are on disk
    assert peaks[1] - peaks[0] < 0.1 * kept, peaks
