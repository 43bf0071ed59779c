"""One encoder of every family: our tokens against what the family's own class gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from dino_tower import load_tower
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.tower import Tower

SIDE, PATCH = 32, 8
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": PATCH,
}
DINOV2 = {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
NAFLEX = {k: v for k, v in SMALL.items() if k != "image_size"} | {"num_patches": 16}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 2]}
BEIT = SMALL | {"use_relative_position_bias": True, "use_absolute_position_embeddings": True}


def flag(model: Any, x: Tensor) -> Any:
    """The class's own output where other sizes need a flag."""
    return model(x, interpolate_pos_encoding=tuple(x.shape[-2:]) != (SIDE, SIDE))


def channels_last(hidden: Tensor) -> Tensor:
    return hidden.permute(0, 2, 3, 1)


def naflex(model: Any, x: Tensor) -> Tensor:
    """Through the processor's own patches, padded to more than there are."""
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches, pad_along_first_dim

    h, w = x.shape[-2] // PATCH, x.shape[-1] // PATCH
    padded = [pad_along_first_dim(convert_image_to_patches(one, PATCH), h * w + 5) for one in x]
    patches, masks = (torch.stack(part) for part in zip(*padded, strict=True))
    return model(patches, masks, torch.tensor([[h, w]] * len(x))).last_hidden_state[:, : h * w]


# model, number of tokens before the patches, whether the first of them is a class token, the normed tokens or map
Case = tuple[Callable[[], nn.Module], int, bool, Callable[[Any, Tensor], Tensor]]
CASES: dict[str, Case] = {
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**DINOV2)), 1, True, lambda m, x: m(x)[0]),
    "dinov2_with_registers": (
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=4)),
        5, True, lambda m, x: m(x)[0],
    ),
    "dinov3_vit": (
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SMALL, num_register_tokens=2)), 3, True, lambda m, x: m(x)[0],
    ),
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**SMALL)), 1, True, lambda m, x: flag(m, x)[0]),
    "deit": (lambda: hf.DeiTModel(hf.DeiTConfig(**SMALL)), 2, True, lambda m, x: flag(m, x)[0]),
    "vit_msn": (lambda: hf.ViTMSNModel(hf.ViTMSNConfig(**SMALL)), 1, True, lambda m, x: flag(m, x)[0]),
    "ijepa": (lambda: hf.IJepaModel(hf.IJepaConfig(**SMALL)), 0, False, lambda m, x: flag(m, x)[0]),
    "beit": (lambda: hf.BeitModel(hf.BeitConfig(**BEIT)), 1, True, lambda m, x: m.pooler.layernorm(m(x)[0])),
    "beit cls": (
        lambda: hf.BeitModel(hf.BeitConfig(**SMALL, use_mean_pooling=False)), 1, True, lambda m, x: m(x)[0],
    ),
    "clip_vision_model": (
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SMALL)), 1, True, lambda m, x: m.post_layernorm(flag(m, x)[0]),
    ),
    "siglip_vision_model": (
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SMALL)), 0, False, lambda m, x: flag(m, x)[0],
    ),
    "siglip2_vision_model": (lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**NAFLEX)), 0, False, naflex),
    "resnet": (
        lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=8, **STAGES)), 0, False,
        lambda m, x: channels_last(m(x)[0]),
    ),
    "convnext": (
        lambda: hf.ConvNextModel(hf.ConvNextConfig(num_stages=2, **STAGES)), 0, False,
        lambda m, x: m.layernorm(channels_last(m(x)[0])),
    ),
    "convnextv2": (
        lambda: hf.ConvNextV2Model(hf.ConvNextV2Config(num_stages=2, **STAGES)), 0, False,
        lambda m, x: m.layernorm(channels_last(m(x)[0])),
    ),
    "dinov3_convnext": (
        lambda: hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(**STAGES)), 0, False,
        lambda m, x: m(x)[0][:, 1:].unflatten(1, (x.shape[-2] // 8, x.shape[-1] // 8)),
    ),
}  # fmt: skip
TRANSFORMERS = [name for name in CASES if "next" not in name and name != "resnet"]
PIXELS = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
WIDE = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))


def shaken(model: nn.Module) -> nn.Module:
    """Weights that tell every part of the model from every other: no zeros, no ones."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    """`model` as a directory with an image processor."""
    model.save_pretrained(folder)
    naflex = model.config.model_type.startswith("siglip2")
    processor = hf.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=16) if naflex else processor_for(SIDE, PATCH)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Tower, Any]]:
    """A tower of a family, loaded from disk, and the model that was saved."""
    made: dict[str, tuple[Tower, Any]] = {}

    def get(name: str) -> tuple[Tower, Any]:
        if name not in made:
            torch.manual_seed(0)
            model = shaken(CASES[name][0]())
            made[name] = (load_tower(saved(model, tmp_path_factory.mktemp("tower") / "tiny")), model)
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pixels", [PIXELS, WIDE], ids=["native", "wide"])
def test_tokens_are_those_of_the_familys_own_class(towers: Any, name: str, pixels: Tensor) -> None:
    tower, model = towers(name)
    _, prefix, has_cls, reference = CASES[name]
    with torch.no_grad():
        hidden = reference(model, pixels)
    out = tower(pixels)
    assert tower.width == out.patches.shape[-1]
    if hidden.ndim == 4:
        assert (tower.depth, out.cls) == (2, None)
        assert torch.equal(out.patches, hidden)
        return
    assert out.patches.shape[1:3] == (pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH)
    assert (out.patches.flatten(1, 2) - hidden[:, prefix:]).abs().max() < 1e-6
    assert (out.cls is not None) == has_cls
    if has_cls:
        assert (out.cls - hidden[:, 0]).abs().max() < 1e-6


@pytest.mark.parametrize("name", [name for name in CASES if "siglip2" not in name])
def test_layers_are_the_hidden_states(towers: Any, name: str) -> None:
    tower, model = towers(name)
    prefix = CASES[name][1]
    with torch.no_grad():
        states = model(PIXELS, output_hidden_states=True).hidden_states
    raw = tower.layers(PIXELS, (0, -2, -1), norm=False)
    for out, state in zip(raw, (states[0], states[-2], states[-1]), strict=True):
        want = channels_last(state) if state.ndim == 4 else state[:, prefix:].unflatten(1, (4, 4))
        assert torch.equal(out.patches, want)
    first, last = tower.layers(PIXELS, 2)
    assert torch.equal(last.patches, tower(PIXELS).patches)  # the last layer, normed, is what the tower gives
    assert first.patches.shape[0] == 2


@pytest.mark.parametrize("name", [n for n in TRANSFORMERS if CASES[n][2]])
@pytest.mark.parametrize("pixels", [PIXELS, WIDE], ids=["native", "wide"])
def test_attention_is_that_of_the_class_token_in_the_last_block(towers: Any, name: str, pixels: Tensor) -> None:
    tower, model = towers(name)
    model.set_attn_implementation("eager")
    sizes = {"interpolate_pos_encoding": True} if pixels is WIDE and name in ("vit", "deit", "vit_msn") else {}
    sizes |= {"interpolate_pos_encoding": True} if pixels is WIDE and name == "clip_vision_model" else {}
    with torch.no_grad():
        full = model(pixels, output_attentions=True, **sizes).attentions[-1]
    maps = tower.attention(pixels)
    assert maps.shape == (2, 2, pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH)
    assert (maps.flatten(2) - full[:, :, 0, CASES[name][1] :]).abs().max() < 1e-6
    assert tower.model.config._attn_implementation == "sdpa"  # asked for maps, it goes on with the fast kernels


@pytest.mark.parametrize("name", ["siglip_vision_model", "siglip2_vision_model"])
def test_a_tower_that_pools_with_a_query_shows_the_querys_attention(towers: Any, name: str) -> None:
    tower, model = towers(name)
    maps = tower.attention(WIDE)
    assert maps.shape == (2, 2, 3, 5)
    assert (maps.sum((-1, -2)) - 1).abs().max() < 1e-5
    patches = tower(WIDE).patches.flatten(1, 2)
    with torch.no_grad():  # the weights are right if the head's own result can be built from them
        head = model.head
        values = patches @ head.attention.in_proj_weight[64:].T + head.attention.in_proj_bias[64:]
        mixed = torch.einsum("bhn,bnhd->bhd", maps.flatten(2), values.unflatten(-1, (2, 16))).flatten(1)
        want = head.attention(head.probe.expand(2, -1, -1), patches, patches)[0][:, 0]
        assert (head.attention.out_proj(mixed) - want).abs().max() < 1e-5


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_keys_are_what_the_last_block_projects(towers: Any, name: str) -> None:
    tower, model = towers(name)
    seen: list[Tensor] = []
    projection = [m for n, m in model.named_modules() if n.endswith("k_proj")][-1]
    hook = projection.register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        CASES[name][3](model, WIDE)
    hook.remove()
    keys = tower.keys(WIDE)
    assert keys.shape == (2, 2, 3, 5, 16)
    prefix = CASES[name][1]
    want = seen[0][:, prefix : prefix + 15].unflatten(-1, (2, 16)).unflatten(1, (3, 5)).movedim(3, 1)
    assert (keys - want).abs().max() < 1e-6


def test_mae_sees_the_whole_picture_in_its_own_place(tmp_path: Path) -> None:
    """ViTMAEModel drops and shuffles patches even in eval: with its order undone, nothing dropped, it is the same."""
    model: Any = shaken(hf.ViTMAEModel(hf.ViTMAEConfig(**SMALL, mask_ratio=0.0)))
    tower = load_tower(saved(model, tmp_path))
    in_order = torch.arange(16.0).expand(2, -1)
    with torch.no_grad():
        hidden = model(PIXELS, noise=in_order).last_hidden_state
    out = tower(PIXELS)
    assert (out.patches.flatten(1, 2) - hidden[:, 1:]).abs().max() < 1e-6
    assert out.cls is not None and (out.cls - hidden[:, 0]).abs().max() < 1e-6
    assert torch.equal(tower(PIXELS).patches, out.patches)  # and it does not draw masks


def test_a_whole_mae_with_its_decoder_is_the_same_tower(tmp_path: Path) -> None:
    config = hf.ViTMAEConfig(
        **SMALL, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2
    )
    whole: Any = shaken(hf.ViTMAEForPreTraining(config))
    tower = load_tower(saved(whole, tmp_path))
    assert torch.equal(tower.model.layers[1].mlp.fc2.weight, whole.vit.layers[1].mlp.fc2.weight)


def test_beit_as_it_was_pretrained_has_its_final_norm(tmp_path: Path) -> None:
    """The masked-image class norms outside of its BeitModel, whose config says mean pooling, so: no norm at all."""
    whole: Any = shaken(hf.BeitForMaskedImageModeling(hf.BeitConfig(**BEIT)))
    tower = load_tower(saved(whole, tmp_path))
    with torch.no_grad():
        want = whole.layernorm(whole.beit(PIXELS).last_hidden_state)
    assert (tower(PIXELS).patches.flatten(1, 2) - want[:, 1:]).abs().max() < 1e-6


def test_classifiers_and_missing_poolers_do_not_matter(tmp_path: Path) -> None:
    model: Any = shaken(hf.ViTForImageClassification(hf.ViTConfig(**SMALL)))  # it has a classifier and no pooler
    tower = load_tower(saved(model, tmp_path))
    with torch.no_grad():
        assert torch.equal(tower(PIXELS).cls, model.vit(PIXELS).last_hidden_state[:, 0])


def test_what_a_family_cannot_give_is_one_line(towers: Any) -> None:
    for name, word in {"ijepa": "class token", "resnet": "convolutional", "convnext": "convolutional"}.items():
        with pytest.raises(ConfigError, match=word):
            towers(name)[0].attention(PIXELS)
    with pytest.raises(ConfigError, match="keys"):
        towers("resnet")[0].keys(PIXELS)
    with pytest.raises(ConfigError, match="no layer 3: this encoder has 2"):
        towers("vit")[0].layers(PIXELS, [3])
    with pytest.raises(ConfigError, match="knows pictures only"):
        towers("dinov2")[0].text(["a red ring"])
    with pytest.raises(ConfigError, match="knows pictures only"):
        towers("dinov2")[0].embed(PIXELS)


def test_the_untrained_twin_has_the_architecture_and_no_weight(towers: Any, tmp_path: Path) -> None:
    for name in ("dinov2", "vit", "siglip_vision_model", "convnext"):
        tower = towers(name)[0]
        twin, again = load_tower(f"random:{tower.name}"), load_tower(f"random:{tower.name}")
        assert type(twin.model) is type(tower.model)
        assert not torch.equal(twin(PIXELS).patches, tower(PIXELS).patches)
        assert torch.equal(twin(PIXELS).patches, again(PIXELS).patches)
