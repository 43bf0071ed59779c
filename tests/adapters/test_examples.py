"""What can be learned from: class folders, masks, depth; pictures and labels that are cut alike; batches by number."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower.adapters.data import BatchMaker, batch_keys, batches, cut, draw_view
from dino_tower.adapters.examples import open_examples
from dino_tower.adapters.settings import TargetConfig, ViewsConfig
from dino_tower.errors import ConfigError
from dino_tower.scenes import make_scene, semantic_names
from dino_tower.sources import SourceOptions

NOTHING, TARGET = SourceOptions(), TargetConfig()


def ids(examples) -> list[str]:
    return [examples.pictures.sample_id(i) for i in range(len(examples))]


def test_scenes_have_masks() -> None:
    train, test = open_examples("segment", ["scenes:medium"], SourceOptions(max_samples=5), TARGET)
    assert train.classes == semantic_names("medium") and len(train) == len(test) == 5
    index = int(train.pictures.indices[3]) if hasattr(train.pictures, "indices") else 3
    scene = make_scene("medium", index, "train")
    picture = train.picture(3)
    assert np.array_equal(np.asarray(picture), scene.image)
    assert np.array_equal(train.label(3, picture), scene.semantic)


def test_a_chosen_split_of_scenes_is_shared_out() -> None:
    """With --source.split train, all scenes were both trained on and held out."""
    train, test = open_examples("segment", ["scenes:easy"], SourceOptions(split="test"), TARGET)
    assert not set(ids(train)) & set(ids(test)) and len(train) + len(test) == 2000


def test_a_folder_of_masks_is_split_by_hash_and_every_mask_belongs_to_its_picture(masked: Path) -> None:
    train, test = open_examples("segment", [str(masked)], NOTHING, TARGET)
    assert train.classes == ("ground", "thing") and not set(ids(train)) & set(ids(test))
    assert len(train) + len(test) == 12
    for part in (train, test):
        for place, name in enumerate(ids(part)):
            expected = np.asarray(Image.open(masked / "masks" / name))
            assert np.array_equal(part.label(place, part.picture(place)), expected)


def test_lists_beside_the_masks_and_values_of_their_own(masked: Path, tmp_path: Path) -> None:
    root = tmp_path / "own"
    shutil.copytree(masked, root)
    (root / "masks").rename(root / "things")
    for path in (root / "things").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 7).save(path)
    (root / "names.json").write_text('{"7": "thing", "9": "none of them"}')
    (root / "things_train.txt").write_text("03\n01\n")
    (root / "things_val.txt").write_text("05\n")
    spelling = f"masks:{root}/images,{root}/things,{root}/names.json"
    train, test = open_examples("segment", [spelling], NOTHING, TARGET)
    assert ids(train) == ["03.png", "01.png"] and ids(test) == ["05.png"]
    mask = train.label(0, train.picture(0))
    assert set(np.unique(mask)) == {0, 255}  # 7 is the first class, 0 is none


@pytest.mark.parametrize("file", ["train.txt", "masks_train.txt", "val.txt"])
def test_one_list_alone_leaves_the_rest_to_the_other_split(
    file: str, masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The split without a list was drawn by hash from all pictures: most of what was scored had been trained on."""
    root = tmp_path / "own"
    shutil.copytree(masked, root)
    named = [f"{i:02d}" for i in range(0, 12, 2)]
    (root / file).write_text("\n".join(named))
    train, test = open_examples("segment", [str(root)], NOTHING, TARGET)
    listed, rest = (test, train) if "val" in file else (train, test)
    assert ids(listed) == [f"{name}.png" for name in named]
    assert ids(rest) == [f"{i:02d}.png" for i in range(1, 12, 2)]
    assert f"the 6 pictures that {root / file} does not name" in capsys.readouterr().out
    (root / file).write_text("\n".join(f"{i:02d}" for i in range(12)))
    with pytest.raises(ConfigError, match="names every picture with a mask: none is left for"):
        open_examples("segment", [str(root)], NOTHING, TARGET)


def test_split_folders(masked: Path, tmp_path: Path) -> None:
    for index, path in enumerate(sorted((masked / "images").iterdir())):
        part = "val" if index % 3 == 0 else "train"
        for folder in ("images", "masks"):
            (tmp_path / folder / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(masked / folder / path.name, tmp_path / folder / part)
    shutil.copy(masked / "classes.txt", tmp_path)
    train, test = open_examples("segment", [str(tmp_path)], NOTHING, TARGET)
    assert (len(train), len(test)) == (8, 4) and ids(test)[0] == "00.png"
    test.check(4)


def test_masks_in_a_column(masked: Path, tmp_path: Path) -> None:
    """Paths beside the list: of absolute ones the hash, and with it the split, would be another one in every folder."""
    shutil.copytree(masked, tmp_path / "own")
    rows = [f"images/{i:02d}.png,masks/{i:02d}.png" for i in range(12)]
    (tmp_path / "own/list.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
    target = TargetConfig(column="mask", classes=str(masked / "classes.txt"))
    train, test = open_examples("segment", [str(tmp_path / "own/list.csv")], NOTHING, target)
    assert len(train) + len(test) == 12
    name = Path(ids(train)[0]).name
    assert np.array_equal(train.label(0, train.picture(0)), np.asarray(Image.open(masked / "masks" / name)))


def test_depth_in_metres(depths: Path) -> None:
    train, test = open_examples("depth", [str(depths)], NOTHING, TARGET)
    assert len(train) + len(test) == 10
    metres = train.label(0, train.picture(0))
    assert metres.dtype == np.float32 and 0.7 < metres.min() < metres.max() < 4.1


def test_depth_beside_the_picture_in_units_of_its_own(depths: Path, tmp_path: Path) -> None:
    for path in (depths / "rgb").iterdir():
        shutil.copy(path, tmp_path / f"{path.stem}_rgb.png")
        shutil.copy(depths / "depth" / path.name, tmp_path / f"{path.stem}_depth.png")
    (tmp_path / "index.json").write_text('[{"id": "4", "depth_units_per_metre": 500, "invalid": 0}]')
    parts = open_examples("depth", [str(tmp_path)], NOTHING, TARGET)
    metres = {name: p.label(i, p.picture(i)) for p in parts for i, name in enumerate(ids(p))}
    assert len(metres) == 10 and metres["4_rgb.png"].max() > 6 > 5 > metres["3_rgb.png"].max()


def test_lists_of_pictures_and_depth_in_one_folder_lie_in_it(depths: Path, tmp_path: Path) -> None:
    """They were looked for a folder above, where somebody else's may lie."""
    root = tmp_path / "rooms"
    root.mkdir()
    for i in range(10):
        shutil.copy(depths / "rgb" / f"{i}.png", root / f"{i}_rgb.png")
        shutil.copy(depths / "depth" / f"{i}.png", root / f"{i}_depth.png")
    (tmp_path / "train.txt").write_text("of another data set\n")
    train, test = open_examples("depth", [str(root)], NOTHING, TARGET)
    assert len(train) + len(test) == 10
    (root / "train.txt").write_text("1\n4\n")
    (root / "val.txt").write_text("7\n")
    train, test = open_examples("depth", [str(root)], NOTHING, TARGET)
    assert ids(train) == ["1_rgb.png", "4_rgb.png"] and ids(test) == ["7_rgb.png"]


def test_masks_lead_where_they_are_named(masked: Path, tmp_path: Path) -> None:
    shutil.copytree(masked / "masks", tmp_path / "masks")
    (tmp_path / "masks/07.png").unlink()
    train, test = open_examples(
        "segment", [f"masks:{masked}/images,{tmp_path}/masks,{masked}/classes.txt"], NOTHING, TARGET
    )
    assert len(train) + len(test) == 11 and "07.png" not in ids(train) + ids(test)


def test_a_view_cuts_picture_and_label_alike() -> None:
    ramp = np.arange(60 * 80, dtype=np.float32).reshape(60, 80)
    for seed in range(20):
        view = draw_view(ViewsConfig(scale=(0.1, 1.0)), 80, 60, np.random.default_rng(seed))
        assert 0 <= view.left <= view.left + view.width <= 80 and 0 <= view.top <= view.top + view.height <= 60
        smooth, exact = (cut(ramp, view, 16, exact=exact) for exact in (False, True))
        assert np.abs(smooth - exact).max() <= 80 * max(1, view.height / 16) + max(1, view.width / 16)
        assert set(np.unique(exact)) <= set(ramp.flatten())


def test_a_picture_too_long_for_any_ratio_is_cut_from_the_middle() -> None:
    view = draw_view(ViewsConfig(scale=(1.0, 1.0)), 300, 10, np.random.default_rng(0))
    assert (view.height, view.width) == (10, 13) and view.left == (300 - 13) // 2


def keys(world: int, rank: int, batch_size: int):
    return batch_keys(
        batch_size=batch_size, rank=rank, world=world, accumulate=1, start=0, stop=6, steps_per_epoch=2
    )  # fmt: skip


@pytest.fixture
def maker(masked: Path) -> BatchMaker:
    train, _ = open_examples("segment", [str(masked)], NOTHING, TARGET)
    return BatchMaker(train, ViewsConfig(), 16, torch.int64, seed=3, world=1)


def test_batches_are_the_same_with_workers_and_with_more_processes(maker: BatchMaker) -> None:
    here = list(batches(maker, keys(1, 0, 4), 0, None, 0.5))
    there = list(batches(maker, keys(1, 0, 4), 1, None, 0.5))
    halves = [list(batches(maker, keys(2, rank, 2), 0, None, 0.5)) for rank in (0, 1)]
    for step, batch in enumerate(here):
        assert torch.equal(batch.pixels, there[step].pixels) and torch.equal(batch.labels, there[step].labels)
        both = torch.stack([halves[0][step].pixels, halves[1][step].pixels], 1).flatten(0, 1)
        assert torch.equal(batch.pixels, both)
    assert sorted(here[0].ids + here[1].ids) == sorted(set(here[0].ids + here[1].ids))
    assert not torch.equal(here[0].pixels, here[2].pixels)  # another epoch


def test_another_picture_stands_in_for_one_that_cannot_be_read(masked: Path, tmp_path: Path) -> None:
    shutil.copytree(masked, tmp_path / "data")
    train, _ = open_examples("segment", [str(tmp_path / "data")], NOTHING, TARGET)
    broken = ids(train)[0]
    (tmp_path / "data/images" / broken).write_bytes(b"no picture")
    maker = BatchMaker(train, ViewsConfig(), 16, torch.int64, seed=3, world=1)
    made = list(batches(maker, keys(1, 0, 4), 0, tmp_path / "skipped.jsonl", 0.5))
    assert all(len(batch.ids) == 4 and broken not in batch.ids for batch in made)
    assert (tmp_path / "skipped.jsonl").read_text().count(broken) == 1
    with pytest.raises(ConfigError, match="max_skipped allows 0"):
        list(batches(maker, keys(1, 0, 4), 0, None, 0))


def test_a_wrong_mask_met_on_the_way_is_one_line(masked: Path, tmp_path: Path) -> None:
    shutil.copytree(masked, tmp_path / "data")
    train, _ = open_examples("segment", [str(tmp_path / "data")], NOTHING, TARGET)
    Image.new("L", (5, 5)).save(tmp_path / "data/masks" / ids(train)[1])
    maker = BatchMaker(train, ViewsConfig(), 16, torch.int64, seed=3, world=1)
    with pytest.raises(ConfigError, match=r"its label is 5 x 5, the picture 40 x 32 pixels") as met:
        list(batches(maker, keys(1, 0, 4), 1, None, 0.5))
    assert "\n" not in str(met.value)
