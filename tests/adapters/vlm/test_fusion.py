"""Fused towers: unlike patches and processors on one grid, and a tower like any other afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel

from dino_tower import image_tokens_for, load_tower
from dino_tower.adapters.fusion import fuse_towers
from dino_tower.adapters.vlm import attach_tower, build_vlm, tower_of, tower_targets
from dino_tower.errors import ConfigError
from dino_tower.fused import FUSIONS, FusedTower
from dino_tower.images import processor_for
from dino_tower.tower import Tower

CLIP_MEAN, CLIP_STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.fixture(scope="session")
def other(make_tower: Callable[..., Tower]) -> Tower:
    """Unlike the others in everything: patch 14, 56 px, width 24, another mean and std."""
    tower = make_tower("vitt14_clip", side=56, seed=7, width=24)
    return Tower(tower.model, processor_for(56, 14, CLIP_MEAN, CLIP_STD), "other")


def seen_by(other: Tower, pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Pixels that were normalised with ImageNet's mean and std, as the other tower wants them."""
    mean, std = ((torch.tensor(v).view(3, 1, 1)) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    raw = pixels * std + mean
    own = (raw - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    return F.interpolate(own, (size, size), mode="bicubic", antialias=True)


def test_concat_holds_the_features_of_both(towers: dict[str, Tower], other: Tower, pictures: list[Any]) -> None:
    """The first tower's to the bit, the other's with 4 x 4 patches of 14 px on the same places."""
    fused = fuse_towers([towers["reg4"], other])
    pixels = fused.pixels(pictures)
    patches = fused(pictures).patches
    assert (patches.shape, fused.width, fused.patch) == ((2, 4, 4, 56), 56, 16)
    assert torch.equal(patches[..., :32], towers["reg4"](pictures).patches)
    assert torch.allclose(patches[..., 32:], other(seen_by(other, pixels, 56)).patches, atol=1e-5)
    assert fused(pictures).cls is None
    assert fused(pictures, size=(96, 32)).patches.shape == (2, 6, 2, 56)


def test_a_member_may_keep_its_own_size(towers: dict[str, Tower], other: Tower, pictures: list[Any]) -> None:
    """Shown 84 px it makes 6 x 6 patches, which are resampled to the common 4 x 4."""
    fused = fuse_towers([towers["plain"], other], sizes=[None, 84])
    theirs = other(seen_by(other, fused.pixels(pictures), 84)).patches.movedim(-1, 1)
    wanted = F.interpolate(theirs, (4, 4), mode="bilinear", antialias=True).movedim(1, -1)
    assert torch.allclose(fused(pictures).patches[..., 32:], wanted, atol=1e-5)


def test_interleaved_tokens_alternate(towers: dict[str, Tower], other: Tower, pictures: list[Any]) -> None:
    """For a VLM two tokens a place, the first tower's first; for load_tower's users both in one vector."""
    fused = fuse_towers([towers["plain"], other], "interleave")
    out = fused.model(fused.pixels(pictures), output_hidden_states=True)
    rows = out.last_hidden_state
    ours, theirs = towers["plain"](pictures).patches.flatten(1, 2), fused(pictures).patches[..., 32:].flatten(1, 2)
    assert torch.equal(rows[:, 0::2], ours)
    assert torch.equal(rows[:, 1::2], theirs)
    assert torch.equal(theirs[..., 24:], torch.zeros(2, 16, 8)), "a narrower tower is filled up"
    assert out.hidden_states[-1] is rows
    assert fused.width == 64


def test_a_sum_starts_as_the_mean_and_learns(towers: dict[str, Tower], pictures: list[Any]) -> None:
    fused = fuse_towers([towers["plain"], towers["rope"]], "sum")
    mean = (towers["plain"](pictures).patches + towers["rope"](pictures).patches) / 2
    assert torch.allclose(fused(pictures).patches, mean, atol=1e-6)
    fused.model(fused.pixels(pictures)).last_hidden_state.square().sum().backward()
    assert all(p.grad is not None for p in fused.model.fusion.parameters())


def test_class_token(towers: dict[str, Tower], pictures: list[Any]) -> None:
    """The mean of the patches stands for one that a member has not."""
    fused = fuse_towers([towers["plain"], towers["siglip"]], class_token=True)
    wanted = torch.cat([towers[kind](pictures).pooled for kind in ("plain", "siglip")], -1)
    cls = fused(pictures).cls
    assert cls is not None and torch.equal(cls, wanted)
    assert fused.model(fused.pixels(pictures)).last_hidden_state.shape == (2, 17, 64)


def test_one_tower_alone_gives_its_patches(towers: dict[str, Tower], pictures: list[Any]) -> None:
    for tower in towers.values():
        fused = fuse_towers([tower])
        assert torch.equal(fused(pictures).patches, tower(pictures).patches)
        assert fused.model(fused.pixels(pictures)).last_hidden_state.shape == (2, 16, 32)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_saved_and_loaded(
    fusion: str, towers: dict[str, Tower], other: Tower, pictures: list[Any], tmp_path: Path
) -> None:
    """As a tower, as a plain model of transformers, and as its untrained twin."""
    fused = fuse_towers([towers["plain"], other, towers["rope"]], fusion, output=tmp_path / "fused")
    torch.nn.init.normal_(fused.model.members[0].layernorm.weight)
    fused.model.save_pretrained(tmp_path / "fused")
    again = load_tower(tmp_path / "fused")
    assert again.family == "dino_tower_fused"
    assert torch.equal(again(pictures).patches, fused(pictures).patches)
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in fused.model.state_dict().items())
    model, processor = (
        AutoModel.from_pretrained(tmp_path / "fused"),
        AutoImageProcessor.from_pretrained(tmp_path / "fused"),
    )
    assert type(model) is FusedTower
    pixels = processor(pictures, return_tensors="pt").pixel_values
    assert torch.equal(model(pixels).last_hidden_state, fused.model(pixels).last_hidden_state)
    twin = load_tower(f"random:{tmp_path / 'fused'}")
    assert twin(pictures).patches.shape == again(pictures).patches.shape
    assert not torch.equal(
        twin.model.members[0].encoder.layer[0].mlp.fc1.weight, again.model.members[0].encoder.layer[0].mlp.fc1.weight
    )
    assert all(torch.equal(v, fused.model.fusion.state_dict()[k]) for k, v in twin.model.fusion.state_dict().items())


def test_what_a_tower_can_do(towers: dict[str, Tower], other: Tower, pictures: list[Any]) -> None:
    fused = fuse_towers([towers["plain"], other])
    (last,) = fused.layers(pictures, 1)
    assert torch.equal(last.patches, fused(pictures).patches)
    assert fused(pictures).pooled.shape == (2, 56)
    native = fused([picture.crop((0, 0, 70 + 20 * i, 50)) for i, picture in enumerate(pictures)], size="native")
    assert [part.patches.shape[1:3] for part in native] == [(3, 4), (3, 6)]
    with pytest.raises(ConfigError, match="a dino_tower_fused has no attention"):
        fused.attention(pictures)
    half = fuse_towers([towers["plain"], other]).to(dtype="bfloat16")
    assert half(pictures).patches.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name",
    [
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "VipLlavaForConditionalGeneration",
        "PaliGemmaForConditionalGeneration",
        "Gemma3ForConditionalGeneration",
        "Cohere2VisionForConditionalGeneration",
    ],
)
def test_in_a_vlm(
    name: str,
    old_vlm: Callable[[str], tuple[Any, Any, str]],
    towers: dict[str, Tower],
    other: Tower,
    pictures: list[Any],
    tmp_path: Path,
) -> None:
    """Without a word of warning: VipLLaVA cuts a token off, so it is given one."""
    fused = fuse_towers([towers["plain"], other], class_token=name.startswith("VipLlava"))
    old, processor, prompt = old_vlm(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        vlm, words = attach_tower(old, fused, processor)
    batch = words(images=pictures[0], text=prompt, return_tensors="pt")
    assert vlm.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] > batch.input_ids.shape[1]
    assert all(torch.equal(v, tower_of(vlm).state_dict()[k]) for k, v in fused.model.state_dict().items())
    vlm.save_pretrained(tmp_path)
    again = type(vlm).from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, vlm(**batch).logits)


def test_interleaved_in_a_vlm(
    old_vlm: Callable[[str], tuple[Any, Any, str]],
    towers: dict[str, Tower],
    other: Tower,
    llama: Any,
    tokenizer: Any,
    pictures: list[Any],
) -> None:
    """Two tokens a patch where they are a row, refused where they are laid out on a grid."""
    fused = fuse_towers([towers["plain"], other], "interleave")
    for name, text, token in (
        ("LlavaForConditionalGeneration", "<image> hi", 5),
        ("PaliGemmaForConditionalGeneration", "<image> hi", 5),
    ):
        old, processor, _ = old_vlm(name)
        vlm, words = attach_tower(old, fused, processor)
        batch = words(images=pictures[0], text=text, return_tensors="pt")
        assert (batch.input_ids == token).sum() == image_tokens_for(name, fused).image_tokens == 32
        assert vlm(**batch).logits.isfinite().all()
    old, processor, _ = old_vlm("LlavaNextForConditionalGeneration")
    with pytest.raises(ConfigError, match="wants one token a patch, and this dino_tower_fused interleaves 2"):
        attach_tower(old, fused, processor)
    vlm, words = build_vlm(fused, llama, tokenizer, projector="resampler", options={"tokens": 3, "heads": 2})
    assert (words(images=pictures[0], text="<image> hi", return_tensors="pt").input_ids == 5).sum() == 3
    with pytest.raises(ConfigError, match="works on a grid, which interleaved tokens are not; use concat"):
        build_vlm(fused, llama, tokenizer, projector="pixel-shuffle")
    assert "members" not in tower_targets(vlm) and "q_proj" in tower_targets(vlm)


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        ([], {}, "no towers given"),
        (["plain"], {"fusion": "add"}, "no fusion 'add'; choices: concat, interleave, sum"),
        (["plain", "rope"], {"width": 8}, "width 8: only interleave and sum project"),
        (["plain", "rope"], {"sizes": [None]}, "sizes: 1 given for 2 towers"),
        (["plain", "rope"], {"sizes": [None, 8]}, "size 8 is less than its patch of 16 pixels"),
        (["plain", "rope"], {"image_size": 60}, "image_size 60 is not a multiple of the first tower's patch"),
        (["random:timm:vit_tiny_patch16_224"], {}, "is no model of transformers, and only those can be fused"),
        (["runs/nowhere/at/all"], {}, "no tower 'runs/nowhere/at/all'"),
    ],
)
def test_mistakes(kinds: list[str], options: dict[str, Any], message: str, towers: dict[str, Tower]) -> None:
    with pytest.raises(ConfigError) as error:
        fuse_towers([towers.get(kind, kind) for kind in kinds], **options)
    assert message in str(error.value)


def test_nothing_is_overwritten_and_nothing_fused_twice(towers: dict[str, Tower], tmp_path: Path) -> None:
    fused = fuse_towers([towers["plain"]], output=tmp_path / "one")
    before = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    with pytest.raises(ConfigError, match="one: exists already"):
        fuse_towers([towers["rope"]], output=tmp_path / "one")
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before
    with pytest.raises(ConfigError, match="is a fused tower already"):
        fuse_towers([fused, towers["rope"]])
