"""Every architecture is a native transformers class with DINO's initialisation, and tokens come out on their grid."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from dino_tower.architectures import CLASSES, build, names
from dino_tower.errors import ConfigError
from dino_tower.tokens import last_attention, tokens

SMALL = {"image_size": 32, "width": 32, "depth": 2, "heads": 2}


@pytest.mark.parametrize("family", CLASSES)
def test_class_survives_disk_and_gives_tokens(tmp_path, family: str) -> None:
    torch.manual_seed(0)
    model = build(f"vits8{family}", **SMALL).eval()
    assert all(m.eps == 1e-6 for m in model.modules() if isinstance(m, torch.nn.LayerNorm))
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not info["missing_keys"] and not info["unexpected_keys"]
    x = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        a, b = tokens(model, x), tokens(loaded.eval(), x)
    assert a.patches.shape == (2, 3, 5, 32)
    assert torch.equal(a.patches, b.patches)
    assert (a.cls is None) == (family == "_siglip")
    assert a.pooled.shape == (2, 32)
    # after the final norm with its initial weights every token has mean 0 and variance 1
    assert a.patches.mean(-1).abs().max() < 1e-5 and (a.patches.var(-1, unbiased=False) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("family", [f for f in CLASSES if f != "_siglip"])
def test_attention_of_the_class_token(family: str) -> None:
    model = build(f"vits8{family}", **SMALL).eval()
    model.set_attn_implementation("eager")
    maps = last_attention(model, torch.randn(2, 3, 24, 40))
    assert maps.shape == (2, 2, 3, 5)
    assert (maps > 0).all() and (maps.sum((-1, -2)) < 1).all()


def test_sizes_are_the_published_ones() -> None:
    counts = {"vits16": 21_665_664, "vitb16": 85_798_656}  # DINO's ViT without head, mask token and LayerScale
    for name, count in counts.items():
        model = build(name, image_size=224)
        own = sum(p.numel() for n, p in model.named_parameters() if "mask_token" not in n and "lambda1" not in n)
        assert own == count


def test_initialisation_is_dinos() -> None:
    torch.manual_seed(0)
    model = build("vits16", image_size=224, depth=1)
    for name, p in model.named_parameters():
        if name.endswith(("proj.weight", "fc1.weight", "fc2.weight", "cls_token", "position_embeddings")):
            assert abs(p.std() - 0.02) < 0.002, name
        if name.endswith("bias") and "projection" not in name:
            assert not p.any(), name
    conv = model.embeddings.patch_embeddings.projection  # PyTorch's default: uniform within 1 / sqrt(fan in)
    bound = (3 * 16 * 16) ** -0.5
    assert conv.weight.abs().max() <= bound and abs(conv.weight.std() - bound / 3**0.5) < 1e-3 and conv.bias.any()


def test_drop_path_rises_linearly() -> None:
    model = build("vits16", image_size=32, depth=5, drop_path=0.2)
    rates = [layer.drop_path.drop_prob for layer in model.encoder.layer]
    assert torch.allclose(torch.tensor(rates), torch.linspace(0, 0.2, 5))
    assert model.config.drop_path_rate == 0.0


@pytest.mark.parametrize(
    ("arch", "kwargs", "line"),
    [
        ("vits61", {}, "did you mean 'vits16'"),
        ("resnet51", {}, "did you mean 'resnet50'"),
        ("vits16", {"image_size": 50}, "not a multiple of the patch size 16"),
        ("vits16", {"image_size": 32, "width": 100, "heads": 3}, "does not divide"),
        ("vits16_clip", {"image_size": 32, "drop_path": 0.1}, "has no drop path"),
        ("resnet50", {"image_size": 32, "heads": 3}, "has no model.heads"),
    ],
)
def test_what_cannot_be_built(arch: str, kwargs: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build(arch, **{"image_size": 32, **kwargs})


def test_names_are_the_fields_own() -> None:
    assert {"vitt16", "vits8", "vitb14_reg4", "vitl14_rope", "vits16_siglip", "vitb16_clip", "resnet50"} <= set(names())
