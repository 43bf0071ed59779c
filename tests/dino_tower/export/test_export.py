"""Every format of a run's tower, opened by the software it is for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, CLIPVisionModel, SiglipVisionModel

from dino_tower import export_tower, load_tower
from dino_tower.checkpoint import load_tensors, save_tensors
from dino_tower.cli import main
from dino_tower.errors import ConfigError
from dino_tower.export import heads, onnx_graph
from dino_tower.positions import antialiased_bicubic
from dino_tower.pretrain.state import load_backbone

MakeRun = Callable[[str], Path]


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def pixels_of(folder: Path, picture: Image.Image) -> Tensor:
    return AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_native_is_what_was_trained(trained: Path, tmp_path: Path, picture: Image.Image, who: str) -> None:
    assert export_tower(trained, tmp_path / "out", weights=who) == 0
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        hidden = model.eval()(pixels_of(tmp_path / "out", picture)).last_hidden_state
    tower = load_tower(f"{trained}@{who}")
    assert torch.equal(hidden[:, 0], tower([picture]).cls)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip


def test_the_command_prints_the_differences_and_the_place(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), str(tmp_path / "out"), "--format", "timm", "--weights", "teacher"]) == 0
    *lines, place = capsys.readouterr().out.splitlines()
    assert place == str(tmp_path / "out")
    form = r"largest difference \d\.\de[+-]\d\d at (\d+ x \d+), of features up to \d+(\.\d+)?"
    assert [re.fullmatch(form, line)[1] for line in lines[:3]] == ["32 x 32", "64 x 48", "88 x 88"]
    assert "differ by design: timm resizes positions with antialiasing" in lines[3]


def test_vit_is_a_vit_whose_pooler_hands_the_class_token_on(
    trained: Path, tmp_path: Path, picture: Image.Image
) -> None:
    assert export_tower(trained, tmp_path / "out", format="vit") <= 1e-5
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model).__name__ == "ViTModel"
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        out = model.eval()(pixels_of(tmp_path / "out", picture))
    assert torch.equal(out.pooler_output, out.last_hidden_state[:, 0])
    assert (out.pooler_output - load_tower(str(trained))([picture]).cls).abs().max() <= 1e-5


def test_timm_loads_it_from_the_directory_and_by_name(trained: Path, tmp_path: Path, picture: Image.Image) -> None:
    assert export_tower(trained, tmp_path / "out", format="timm") <= 1e-5
    tower = load_tower(str(trained))
    pixels = tower.pixels([picture])
    by_folder = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32, "num_classes": 0}
    file = str(tmp_path / "out" / "model.safetensors")
    by_name = timm.create_model("vit_small_patch16_224", checkpoint_path=file, **sizes).eval()
    with torch.no_grad():
        for model in (by_folder, by_name):
            assert (model(pixels) - tower(pixels).cls).abs().max() <= 1e-5
    data = timm.data.resolve_model_data_config(by_folder)
    assert tuple(data["mean"]) == tuple(tower.processor.image_mean)
    assert tuple(data["input_size"]) == (3, 32, 32)


def test_dino_has_the_names_of_the_original_and_nothing_but_tensors(
    trained: Path, tmp_path: Path, parity_train: Path
) -> None:
    assert export_tower(trained, tmp_path / "out", format="dino") <= 1e-5
    weights = torch.load(tmp_path / "out" / "backbone.pth", weights_only=True)
    with np.load(parity_train / "vit_original.npz") as original:
        names = {name.removeprefix("sd/") for name in original if name.startswith("sd/")}
    depth = 1 + max(int(name.split(".")[1]) for name in names if name.startswith("blocks."))
    assert set(weights) == {n for n in names if not n.startswith("blocks.") or int(n.split(".")[1]) < min(2, depth)}


def test_heads_hold_all_that_training_goes_on_from(trained: Path, tmp_path: Path) -> None:
    assert export_tower(trained, tmp_path / "out", format="heads", weights="teacher") == 0
    (checkpoint,) = (trained / "checkpoints").glob("step-*")
    ours, theirs = (load_tensors(folder / "heads.safetensors") for folder in (tmp_path / "out", checkpoint))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for who in ("student", "teacher"):
        written = load_tower(tmp_path / "out" / who).model.state_dict()
        assert all(torch.equal(v, written[k]) for k, v in load_tower(f"{trained}@{who}").model.state_dict().items())
    backbone = load_tower(f"random:{trained}").model
    load_backbone(backbone, tmp_path / "out")  # what --init-from does
    assert all(
        torch.equal(v, backbone.state_dict()[k]) for k, v in load_tower(f"{trained}@teacher").model.state_dict().items()
    )


@pytest.mark.parametrize("format", ["native", "vit", "timm", "dinov2"])
def test_writing_twice_gives_the_same_bytes(trained: Path, tmp_path: Path, format: str) -> None:
    for name in ("a/tower", "b/tower"):
        export_tower(trained, tmp_path / name, format=format)
    first, second = (sorted((tmp_path / name).rglob("*")) for name in ("a/tower", "b/tower"))
    assert [p.name for p in first] == [p.name for p in second]
    assert [p.name for p, q in zip(first, second, strict=True) if p.read_bytes() != q.read_bytes()] == []


@pytest.mark.parametrize(("arch", "kind"), [("vits8_siglip", SiglipVisionModel), ("vits8_clip", CLIPVisionModel)])
def test_clip_and_siglip_towers_have_the_names_that_serving_engines_read(
    make_run: MakeRun, tmp_path: Path, arch: str, kind: type
) -> None:
    assert export_tower(make_run(arch), tmp_path / "out") == 0
    assert all(name.startswith("vision_model.") for name in load_tensors(tmp_path / "out" / "model.safetensors"))
    for loader in (AutoModel, kind):
        model, info = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert type(model) is kind and not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize("arch", ["vits8_reg4", "vits8_rope", "resnet8"])
def test_every_class_exports(make_run: MakeRun, tmp_path: Path, arch: str) -> None:
    assert export_tower(make_run(arch), tmp_path / "out") == 0


def test_what_differs_is_not_kept(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that loses half a bit somewhere must not leave a directory."""
    from dino_tower.export import formats

    def worse(*args: object) -> dict[str, Tensor]:
        weights = original(*args)
        weights["blocks.1.mlp.fc2.weight"] = weights["blocks.1.mlp.fc2.weight"] * 1.001
        return weights

    original = formats.native_to_timm
    monkeypatch.setattr(formats, "native_to_timm", worse)
    with pytest.raises(ConfigError, match=r"differs from the tower by .* not kept"):
        export_tower(trained, tmp_path / "deep" / "out", format="timm")
    assert list(tmp_path.iterdir()) == []


def test_onnx_takes_any_batch_height_and_width(make_run: MakeRun, tmp_path: Path) -> None:
    """With registers: the exporter freezes the antialiased resizing of their class, so ours stands in for it."""
    import onnxruntime

    run = make_run("vits8_reg4")
    assert export_tower(run, tmp_path / "out", format="onnx") <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "tower.onnx")
    tower = load_tower(str(run))
    for shape in ((1, 3, 32, 32), (3, 3, 24, 72), (2, 3, 80, 16)):
        pixels = torch.randn(*shape)
        patches, cls = session.run(["patches", "cls"], {"pixel_values": pixels.numpy()})
        out = tower(pixels)
        assert np.abs(patches - out.patches.numpy()).max() <= 1e-4
        assert np.abs(cls - out.cls.numpy()).max() <= 1e-4


def test_onnx_of_a_fixed_size_says_so_in_its_name_and_card(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the exporter cannot leave the size free; here it is told that it cannot."""
    export = onnx_graph._export

    def refuse(module: object, example: Tensor, dynamic: dict[int, object], file: Path) -> None:
        if 2 in dynamic:
            raise RuntimeError("this size depends on data")
        export(module, example, dynamic, file)

    monkeypatch.setattr(onnx_graph, "_export", refuse)
    said: list[str] = []
    assert export_tower(make_run("vits8"), tmp_path / "out", format="onnx", say=said.append) <= 1e-4
    assert (tmp_path / "out" / "tower_32x32.onnx").is_file() and not (tmp_path / "out" / "tower.onnx").exists()
    fixed = "height and width are fixed at 32 x 32"
    assert any(fixed in line for line in said) and fixed in (tmp_path / "out" / "README.md").read_text()


def test_onnx_without_its_packages(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ConfigError, match="not installed: pip install onnxscript"):
        export_tower(trained, tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("side", "size"), [(4, (3, 5)), (16, (6, 11)), (7, (7, 7)), (5, (20, 2))])
def test_antialiased_bicubic_is_torchs(side: int, size: tuple[int, int]) -> None:
    table = torch.randn(side, side, 9, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.interpolate(table.permute(2, 0, 1)[None], size=size, mode="bicubic", antialias=True)
    assert (antialiased_bicubic(table, size) - want[0].permute(1, 2, 0)).abs().max() <= 2e-6


def test_a_run_is_named_with_its_network_wherever_it_lies(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RUN@teacher was cut at the first @ of its path, and refused by `export` and `show`, which ask for a run."""
    run = tmp_path / "jane@uni.edu" / "birds"
    shutil.copytree(trained, run)
    teacher = load_tower(f"{run}@teacher")
    assert main(["export", f"{run}@teacher", str(tmp_path / "out")]) == 0
    export_tower(trained, tmp_path / "other", "teacher")
    weights = load_tower(tmp_path / "out").model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in teacher.model.state_dict().items())
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "other/model.safetensors").read_bytes()
    assert main(["show", f"{run}@teacher", "--output", str(tmp_path / "page.html")]) == 0
    assert main(["export", f"{run}@teacher", str(tmp_path / "new"), "--weights", "student"]) == 2
    assert "name one of the two" in capsys.readouterr().err


def test_a_checkpoint_that_lands_during_an_export_is_not_mixed_in(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint was looked for four times: heads of a later step could lie beside an earlier tower."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    [first] = (run / "checkpoints").glob("step-*")
    real = heads.load_tensors

    def later(file: Path) -> dict[str, torch.Tensor]:
        if not (run / "checkpoints/step-999").exists():
            shutil.copytree(first, run / "checkpoints/step-999")
            moved = {name: value + 1 for name, value in real(first / "heads.safetensors").items()}
            save_tensors(run / "checkpoints/step-999/heads.safetensors", moved)
        return real(file)

    monkeypatch.setattr(heads, "load_tensors", later)
    export_tower(run, tmp_path / "out", format="heads")
    kept, meant = (real(folder / "heads.safetensors") for folder in (tmp_path / "out", first))
    assert all(torch.equal(kept[name], value) for name, value in meant.items())
