"""`dino-tower show TOWER IMAGE...`: what is read, at which size, what is written and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dino_tower import cli
from dino_tower.errors import ConfigError
from dino_tower.explorer.look import MOST_IMAGES, explore, longest_side, seen_size, shown_name, summary
from dino_tower.explorer.pictures import Sight, first_patch
from dino_tower.images import processor_for
from dino_tower.tower import load_tower

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def save(model: PreTrainedModel, folder: Path, patch: int = 8) -> Path:
    model.save_pretrained(folder)
    processor_for(32, patch).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower made for 32 pixels: 4 patches of 8 a side, 2 heads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save(Dinov2Model(Dinov2Config(**VIT, mlp_ratio=2)), tmp_path_factory.mktemp("towers") / "tiny")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of unlike proportions, one in a folder below, and a file that is none."""
    rng = np.random.default_rng(0)
    for name, width, height in (("wide", 90, 45), ("tall", 40, 80), ("deep/square", 64, 64)):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("not a picture")
    return tmp_path / "photos"


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'id="explorer-data">(.*?)</script>', page.read_text(), re.S)[1])


def test_a_page_and_pngs_of_whole_pictures(tower: Path, photos: Path, tmp_path: Path) -> None:
    done = explore(tower, [photos], tmp_path / "out")
    assert done.page == tmp_path / "out" / "explore.html"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    kinds = ("attention", "foreground", "heads", "pca", "similarity")
    pngs = [f"{stem}-{kind}.png" for stem in ("01-tall", "02-wide", "03-square") for kind in kinds]
    assert names == sorted([*pngs, "explore.html", "overview.png", "show.json"])
    assert sorted(path.name for path in done.files) == [name for name in names if name != "show.json"]
    grids = {picture["name"]: (picture["h"], picture["w"]) for picture in data_of(done.page)["pictures"]}
    assert grids == {"tall": (12, 6), "wide": (6, 12), "square": (12, 12)}  # 12 = three times the native 4 patches
    assert Image.open(tmp_path / "out" / "01-tall-attention.png").size == (240, 480)
    text = done.page.read_text()
    assert "What <em>tiny</em> sees" in text
    assert "longer side 96 pixels (12 patches): 3 times the size the tower was made for" in text
    assert str(tmp_path) not in text  # pages are sent around
    assert str(tower.parent) not in text
    assert summary(done).splitlines()[-1] == str(done.page)
    assert "16 PNGs beside one page of " in summary(done)


def test_the_command_prints_a_short_summary(
    tower: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 half a picture")
    assert (
        cli.main(["show", str(tower), "photos/wide.png", "--size", "40", "photos/broken.jpg", "photos/wide.png"]) == 0
    )
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4
    assert out[0].startswith("1 picture. Whole pictures, their longer side 40 pixels (5 patches): 1.2 times")
    assert out[1].startswith("1 could not be read and left out; the first, photos/broken.jpg: ")
    assert out[3] == "show/tiny/explore.html"
    assert "1 could not be read" in Path(out[3]).read_text()


@pytest.mark.parametrize("kind", ["siglip", "resnet"])
def test_a_tower_without_a_class_token_has_no_attention(kind: str, photos: Path, tmp_path: Path) -> None:
    if kind == "siglip":
        config = SiglipVisionConfig(**VIT, intermediate_size=64, vision_use_head=False)
        folder = save(SiglipVisionModel(config), tmp_path / kind)
    else:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        folder = save(ResNetModel(config), tmp_path / kind)
    done = explore(folder, [photos / "wide.png"], tmp_path / "out")
    text = done.page.read_text()
    assert text.count("This tower gives no attention") >= 1
    assert 'value="attention"' not in text
    assert not [path for path in done.files if "attention" in path.name or "heads" in path.name]
    assert [path.name for path in done.files if path.suffix == ".png"] == [
        "01-wide-foreground.png", "01-wide-pca.png", "01-wide-similarity.png", "overview.png"
    ]  # fmt: skip


def test_sizes_fit_the_tower(tower: Path) -> None:
    loaded = load_tower(tower)
    assert longest_side(loaded) == 96
    wide = Image.new("RGB", (400, 100))
    assert seen_size(loaded, wide) == (24, 96)
    assert seen_size(loaded, wide, 200) == (48, 200)
    assert seen_size(loaded, wide, "native") == (96, 400)
    assert seen_size(loaded, Image.new("RGB", (1000, 2)), 80) == (8, 80)  # never less than a patch
    for size, native in ((224, 336), (32, 96), (8 * 44, 8 * 44), (8 * 64, 8 * 48)):
        loaded.processor = processor_for(size, 8)
        assert longest_side(loaded) == (8 * 40 if size == 224 else native)


def test_more_pictures_than_a_page_holds(tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_tower.explorer.look.MOST_IMAGES", 3)
    assert MOST_IMAGES >= 12
    for i in range(7):
        Image.new("RGB", (16, 16), (30 * i, 90, 0)).save(tmp_path / f"{i}.png")
    done = explore(tower, [tmp_path], tmp_path / "out", size=16)
    assert [picture["name"] for picture in data_of(done.page)["pictures"]] == ["0", "2", "4"]
    assert (done.pictures, done.left_out) == (3, 4)
    assert "4 more left out" in summary(done)
    assert "4 more were left out" in done.page.read_text()


def test_pictures_that_share_a_name_keep_their_folders(tower: Path, tmp_path: Path) -> None:
    for folder in ("cats", "dogs"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / folder / "1.png")
    done = explore(tower, [tmp_path / "cats", tmp_path / "dogs", tmp_path / "dogs" / "1.png"], tmp_path / "o", 16)
    assert [picture["name"] for picture in data_of(done.page)["pictures"]] == ["cats/1.png", "dogs/1.png"]


def test_what_show_wrote_is_replaced_and_nothing_else(tower: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    explore(tower, [photos], out, 16)
    explore(tower, [photos / "wide.png"], out, 16)
    assert not [path for path in out.iterdir() if path.name.startswith(("02", "03", "."))]
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match=r"holds what show did not write \(mine.txt\)"):
        explore(tower, [photos], out, 16)
    assert (out / "mine.txt").read_text() == "keep"
    with pytest.raises(ConfigError, match=r"did not write \(deep and 3 more\)"):
        explore(tower, [photos], photos, 16)


def test_what_fails_leaves_nothing(tower: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = explore(tower, [photos / "wide.png"], tmp_path / "out", 16).page.read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dino_tower.explorer.pictures.pca_picture", full)
    for out in (tmp_path / "out", tmp_path / "new" / "deeper"):
        with pytest.raises(ConfigError, match=r"cannot write '.*': No space left on device"):
            explore(tower, [photos / "tall.png"], out, 16)
    assert (tmp_path / "out" / "explore.html").read_text() == before
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["TOWER", "nothing.png"], "no picture or folder 'nothing.png'"),
        (["TOWER", "photos/wdie.png"], "did you mean 'photos/wide.png'?"),
        (["TOWER", "empty"], "'empty': a folder without pictures; read are .apng"),
        (
            ["TOWER", "photos/notes.txt"],
            "none of the 1 pictures can be read; the first, photos/notes.txt: not an image",
        ),
        (["TOWER", "photos", "--size", "big"], "--size 'big': give the pixels of the longer side, or native"),
        (["TOWER", "photos", "--size", "-3"], "--size"),
        (["TOWER", "photos", "--size", "0"], "--size '0'"),
        (["TOWER", "photos", "--size", "7"], "--size 7: smaller than the patch of"),
        (["TOWER", "photos", "--size", "5000"], "at most 4096 fit, so --size "),
        (["TOWER", "photos", "--output", "photos/wide.png"], "--output 'photos/wide.png' is a file"),
        (["TOWER", "photos", "--output", "photos"], "holds what show did not write (deep and 3 more)"),
        (["./absent", "photos"], "absent"),
        (["empty", "photos"], "empty"),
        (["random:vitx16", "photos"], "vitx16"),
        (["TOWER", "--size", "40"], "--size is for pictures"),
        (["empty"], "not a run"),
        (["TOWER"], "is a tower, not a run; name pictures too"),
        (["random:vits16"], "random:vits16 is a tower, not a run"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str],
    says: str,
    tower: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["show", *(str(tower) if word == "TOWER" else word for word in words)]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert len(out.err.splitlines()) == 1
    assert says in out.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_size_that_is_refused_names_one_that_fits(tower: Path) -> None:
    loaded, picture = load_tower(tower), Image.new("RGB", (400, 300))
    with pytest.raises(ConfigError, match="so --size") as refused:
        seen_size(loaded, picture, 5000)
    allowed = int(str(refused.value).split("--size ")[-1].split()[0])
    height, width = seen_size(loaded, picture, allowed)
    assert 3000 < height * width / 64 <= 4096


def test_features_that_are_not_finite_are_said(tower: Path, photos: Path, tmp_path: Path) -> None:
    loaded = load_tower(tower)
    loaded.model.layernorm.weight.data.fill_(float("nan"))
    with pytest.raises(ConfigError, match="not finite for wide"):
        explore(loaded, [photos / "wide.png"], tmp_path / "out", 16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("{}/towers/birds", "birds"), ("{}/towers/birds/export", "birds/export"), ("timm:vit_small", "timm:vit_small"),
        ("random:{}/towers/birds", "random:birds"), ("{}/towers/birds@teacher", "birds@teacher"),
        ("facebook/dinov2-small", "facebook/dinov2-small"), ("random:vits16", "random:vits16"),
        ("builtin:scenes", "builtin:scenes"),
    ],
)  # fmt: skip
def test_a_page_names_the_tower_and_not_where_it_lies(spelling: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "towers" / "birds" / "export").mkdir(parents=True)
    assert shown_name(spelling.format(tmp_path)) == name


def test_the_first_patch_is_the_one_most_looked_at_in_the_foreground() -> None:
    attention, front = torch.zeros(2, 3, 4), -torch.ones(3, 4)
    attention[:, 0, 0], attention[:, 1, 2], attention[0, 2, 3] = 1.0, 0.5, 0.8
    front[1:, 2:] = 0.2
    front[2, 2] = 0.9
    seen = Sight("x", Image.new("RGB", (4, 3)), torch.zeros(3, 4, 2), attention)
    assert first_patch(seen, front) == (1, 2)
    assert first_patch(seen, -front.abs()) == (0, 0)  # no foreground at all
    assert first_patch(seen._replace(attention=None), front) == (2, 2)


def test_a_loaded_tower_stays_where_the_caller_put_it(
    tower: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`explore` once moved the caller's own tower to the GPU, and left it there."""
    mine, moved = load_tower(tower), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mine, "to", moved.append)
    explore(mine, [photos / "wide.png"], tmp_path / "out")
    assert moved == []
