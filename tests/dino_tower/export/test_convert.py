"""Weights from one library's layout to another's: the same numbers, and the features of the library they came from."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from dino_tower.cli import main
from dino_tower.convert import native_to_original, native_to_timm, native_to_vit, timm_to_native, vit_to_native
from dino_tower.convert.conversion import convert_weights
from dino_tower.convert.shape import fold_layerscale
from dino_tower.images import processor_for

Draw = Callable[..., PreTrainedModel]
Weights = dict[str, Tensor]


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor_for(32, 8).save_pretrained(folder)
    return folder


def random_weights(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return model.eval()


def test_round_trips_through_all_layouts_are_bit_equal(draw: Draw, tmp_path: Path) -> None:
    """native, DINO, timm, ViT and back, by way of files, with the features checked at each step."""
    native = draw("vits8")
    before = save(native, tmp_path / "start")
    for step in ("dino", "timm", "vit", "dinov2", "native", "timm", "dino", "vit", "native"):
        after = tmp_path / f"{before.name}-{step}"
        assert convert_weights(before, after, step, heads=2) <= 1e-5
        before = after
    assert same(AutoModel.from_pretrained(before).state_dict(), native.state_dict())
    first, last = (torch.load(next(tmp_path.glob(f"{end}/backbone.pth")), weights_only=True)
                   for end in ("start-dino", "*native-timm-dino"))  # fmt: skip
    assert same(first, last)


def test_at_other_sizes_the_difference_by_design_is_printed(
    draw: Draw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(draw("vits8"), tmp_path / "in")
    for to, differs in (("vit", False), ("timm", True), ("dino", True)):
        assert main(["convert", str(source), str(tmp_path / to), "--to", to]) == 0
        lines = capsys.readouterr().out.splitlines()
        gaps = [float(line.split()[2]) for line in lines if line.startswith("largest difference")]
        assert len(gaps) == 3 and gaps[0] <= 1e-5
        assert all((1e-3 < gap < 1) == differs for gap in gaps[1:])
        assert any("features differ by design" in line for line in lines) == differs


def test_registers_and_layerscale_keep_every_bit_but_the_sum_of_class_token_and_its_position(
    draw: Draw, tmp_path: Path
) -> None:
    model = draw("vits8_reg4")
    for name, p in model.named_parameters():
        if name.endswith("lambda1"):
            p.data.uniform_(0.1, 2)
    source = save(model, tmp_path / "in")
    convert_weights(source, tmp_path / "dinov2", "dinov2")
    convert_weights(tmp_path / "dinov2", tmp_path / "native", "native")
    assert same(AutoModel.from_pretrained(tmp_path / "native").state_dict(), model.state_dict())
    assert convert_weights(source, tmp_path / "timm", "timm") <= 1e-5
    assert convert_weights(tmp_path / "timm", tmp_path / "again", "native") <= 1e-5
    ours, theirs = model.state_dict(), AutoModel.from_pretrained(tmp_path / "again").state_dict()
    moved = {"embeddings.cls_token", "embeddings.position_embeddings"}
    assert same({k: v for k, v in ours.items() if k not in moved}, {k: v for k, v in theirs.items() if k not in moved})
    whole = [w["embeddings.cls_token"] + w["embeddings.position_embeddings"][:, :1] for w in (ours, theirs)]
    assert torch.equal(*whole)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_small_patch16_224", {"patch_size": 8}),
        ("vit_small_patch14_dinov2", {"patch_size": 8}),
        ("vit_small_patch14_reg4_dinov2", {"patch_size": 8}),
        ("vit_giant_patch14_dinov2", {"patch_size": 8, "mlp_ratio": 2.66667 * 2}),  # SwiGLU
    ],
)
def test_timm_models_convert_from_a_bare_file_and_back(tmp_path: Path, name: str, sizes: dict[str, float]) -> None:
    model = random_weights(
        timm.create_model(name, embed_dim=96, depth=2, num_heads=3, img_size=32, num_classes=0, **sizes)
    )
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    assert convert_weights(tmp_path / "timm.pth", tmp_path / "native", "native", heads=3) <= 1e-5
    tower = AutoModel.from_pretrained(tmp_path / "native").eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = tower(pixels).last_hidden_state, model.forward_features(pixels)
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())
    assert same(native_to_timm(timm_to_native(model.state_dict())), model.state_dict())
    assert convert_weights(tmp_path / "native", tmp_path / "back", "timm") <= 1e-5
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    assert same(back.state_dict(), model.state_dict())


def test_a_training_checkpoint_of_dino_gives_the_authors_features(
    parity_train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Student and teacher under the prefixes of DDP and MultiCropWrapper, heads, optimiser, an argparse.Namespace."""
    with np.load(parity_train / "vit_original.npz") as file:
        data = {k: torch.from_numpy(np.array(file[k])) for k in file if file[k].dtype.kind != "U"}
    weights = {k.removeprefix("sd/"): v for k, v in data.items() if k.startswith("sd/")}
    teacher = {f"backbone.{k}": v for k, v in weights.items()} | {"head.mlp.0.weight": torch.ones(3, 3)}
    student = {f"module.{k}": v + 1 for k, v in teacher.items()}
    checkpoint = {
        "student": student, "teacher": teacher, "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100, "args": Namespace(arch="vit_small", patch_size=8, local_crops_scale=(0.05, 0.4)),
        "fp16_scaler": None,
    }  # fmt: skip
    file = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, file)
    heads = str(int(data["heads"]))
    assert main(["convert", str(file), str(tmp_path / "out"), "--to", "native", "--heads", heads]) == 0
    said = capsys.readouterr().out
    assert "the teacher of a training checkpoint was taken" in said and "heads was left out (1 tensors)" in said
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    side = model.config.image_size
    (native,) = (k for k in data if k == f"x/{side}x{side}" or k == f"x/{side}")
    with torch.no_grad():
        hidden = model(data[native]).last_hidden_state
    want = data[native.replace("x/", "tokens/", 1)]
    assert (hidden - want).abs().max() <= 1e-5 * max(1, want.abs().max())
    assert same(native_to_original(model.state_dict()), weights)
    assert (
        main(["convert", str(file), str(tmp_path / "s"), "--to", "dino", "--heads", heads, "--weights", "student"]) == 0
    )
    written = torch.load(tmp_path / "s" / "backbone.pth", weights_only=True)
    assert same(written, {k: v + 1 for k, v in weights.items()})


def test_a_training_checkpoint_of_dinov2_keeps_its_blocks_in_chunks(draw: Draw, tmp_path: Path) -> None:
    model = draw("vits8_reg4", depth=4)
    original = native_to_original(model.state_dict())
    chunked = {}
    for name, value in original.items():
        if name.startswith("blocks."):
            name = f"blocks.{int(name.split('.')[1]) // 2}.{name.removeprefix('blocks.')}"
        chunked[f"backbone.{name}"] = value
    chunked["dino_head.mlp.0.weight"] = torch.ones(2, 2)
    torch.save({"teacher": chunked}, tmp_path / "teacher_checkpoint.pth")
    convert_weights(tmp_path / "teacher_checkpoint.pth", tmp_path / "out", "native", heads=2)
    assert same(AutoModel.from_pretrained(tmp_path / "out").state_dict(), model.state_dict())


@pytest.mark.parametrize("registers", [False, True])
def test_swiglu_converts_both_ways(tmp_path: Path, registers: bool) -> None:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
             "use_swiglu_ffn": True, "layerscale_value": 0.5}  # fmt: skip
    model = random_weights(
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes))
        if registers
        else Dinov2Model(Dinov2Config(**sizes))
    )
    source = save(model, tmp_path / "in")
    for to in ("dinov2", "timm"):
        assert convert_weights(source, tmp_path / to, to) <= 1e-5
        assert convert_weights(tmp_path / to, tmp_path / f"{to}-native", "native") <= 1e-5
    assert same(AutoModel.from_pretrained(tmp_path / "dinov2-native").state_dict(), model.state_dict())


def test_a_vit_with_a_classifier_becomes_a_tower_with_its_own_epsilon(tmp_path: Path) -> None:
    """transformers' ViTs come with 1e-12 in their LayerNorms, a pooler or a classifier; only the tokens are kept."""
    config = ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32,
                       patch_size=8)  # fmt: skip
    model = random_weights(ViTForImageClassification(config))
    model.save_pretrained(tmp_path / "in")
    ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.4] * 3, size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "in"
    )
    said: list[str] = []
    assert convert_weights(tmp_path / "in", tmp_path / "out", "native", say=said.append) <= 1e-5
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")  # a VLM's processor needs to know the crop
    assert dict(processor.crop_size) == {"height": 32, "width": 32} and list(processor.image_std) == [0.4] * 3
    assert "its processor cut no square: one that resizes and cuts 32 x 32 was written" in said
    tower = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert tower.config.layer_norm_eps == 1e-12 and tower.config.num_attention_heads == 4
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = model.vit(pixels).last_hidden_state
        assert (tower(pixels).last_hidden_state - want).abs().max() <= 1e-5 * max(1, want.abs().max())
    base = {k: v for k, v in model.vit.state_dict().items() if not k.startswith("pooler")}
    again = native_to_vit(vit_to_native(base))
    assert same({k: v for k, v in again.items() if not k.startswith("pooler")}, base)


def test_layerscale_is_multiplied_in_where_the_layout_has_none(draw: Draw, tmp_path: Path) -> None:
    model = draw("vits8")
    for name, p in model.named_parameters():
        if name.endswith("lambda1"):
            p.data.uniform_(0.1, 2)
    source = save(model, tmp_path / "in")
    for to in ("vit", "dino"):
        said: list[str] = []
        assert convert_weights(source, tmp_path / to, to, say=said.append) <= 1e-5
        assert any("LayerScale was multiplied" in line for line in said)
    folded = fold_layerscale(model.state_dict())
    assert all(bool((v == 1).all()) for k, v in folded.items() if k.endswith("lambda1"))


def test_the_number_of_heads_is_said_when_it_is_assumed(draw: Draw, tmp_path: Path) -> None:
    torch.save(native_to_original(draw("vits8", width=128).state_dict()), tmp_path / "weights.pth")
    said: list[str] = []
    convert_weights(tmp_path / "weights.pth", tmp_path / "a", "native", say=said.append)
    assert "2 attention heads were assumed (width / 64): --heads says otherwise" in said
    assert "ImageNet's mean and std were assumed: nothing beside the weights tells" in said
    convert_weights(tmp_path / "weights.pth", tmp_path / "b", "native", heads=4)
    assert [AutoModel.from_pretrained(tmp_path / name).config.num_attention_heads for name in "ab"] == [2, 4]


def test_what_stands_beside_the_weights_is_kept(draw: Draw, tmp_path: Path) -> None:
    """Heads and pixel statistics travel through every layout."""
    draw("vits8", heads=4).save_pretrained(tmp_path / "in")
    processor_for(32, 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)).save_pretrained(tmp_path / "in")
    before = tmp_path / "in"
    for to in ("dino", "timm", "vit", "native"):
        convert_weights(before, tmp_path / to, to)
        before = tmp_path / to
    assert AutoModel.from_pretrained(before).config.num_attention_heads == 4
    processor = AutoImageProcessor.from_pretrained(before)
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_half_precision_is_written_in_full(draw: Draw, tmp_path: Path) -> None:
    """A directory saved in bfloat16 is compared, and goes on, in the float32 that its numbers are exact in."""
    model = draw("vits8").to(torch.bfloat16)
    source = save(model, tmp_path / "in")
    assert convert_weights(source, tmp_path / "out", "vit") <= 1e-5
    written = AutoModel.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    assert written["layernorm.weight"].dtype == torch.float32
    assert torch.equal(written["layernorm.weight"], model.state_dict()["layernorm.weight"].float())
