"""timm's and torchvision's models: our tokens against what the library's own code gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.models import save_for_hf
from timm.utils import AttentionExtract
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock, ResNet

from dino_tower import load_tower
from dino_tower.errors import ConfigError
from dino_tower.tower import Tower

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WIDE = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
# timm's model, what makes it small, tokens before the patches, whether the first is a class token, whether any size
TIMM: dict[str, tuple[dict[str, Any], int, bool, bool]] = {
    "vit_small_patch16_224": (SMALL, 1, True, True),
    "deit_tiny_distilled_patch16_224": (SMALL, 2, True, True),
    "vit_small_patch14_reg4_dinov2": (SMALL, 5, True, True),
    "vit_base_patch16_siglip_224": (SMALL, 0, False, True),
    "vit_small_patch16_dinov3": (SMALL, 5, True, True),
    "vit_pe_core_base_patch16_224": (SMALL | {"attn_pool_num_heads": 2}, 1, True, True),
    "vit_pe_spatial_tiny_patch16_512": (SMALL, 1, True, True),
    "beitv2_base_patch16_224": (SMALL, 1, True, False),
    "eva02_tiny_patch14_224": (SMALL, 1, True, True),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, 0, False, True),
    "resnet18": ({"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}, 0, False, True),
}


def shaken(model: nn.Module) -> nn.Module:
    """Weights that tell every part of the model from every other: no zeros, no ones."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module", params=TIMM)
def timm_case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """The name, a small model of timm, and the tower that its directory loads as."""
    name = request.param
    model: Any = shaken(timm.create_model(name, num_classes=0, **TIMM[name][0]))
    folder = tmp_path_factory.mktemp("timm") / name
    args = {"num_classes": 0, **TIMM[name][0]}
    save_for_hf(model, str(folder), model_args=args, safe_serialization=True)
    return name, model, load_tower(f"timm:{folder}")


def test_tokens_are_timms_features_after_the_norm(timm_case: tuple[str, Any, Any]) -> None:
    name, model, tower = timm_case
    _, prefix, has_cls, _ = TIMM[name]
    with torch.no_grad():
        hidden = model.forward_features(PIXELS)
        if name.startswith("convnext"):  # its head pools and norms: the norm of one place is that of a 1 x 1 map
            hidden = model.head.norm(hidden)
        elif name.startswith(("beit", "eva02")):  # their final norm stands behind the pooling
            hidden = model.fc_norm(hidden)
    out = tower(PIXELS)
    if hidden.ndim == 4:
        assert torch.equal(out.patches, hidden.permute(0, 2, 3, 1))
        assert (out.cls, tower.patch, tower.depth) == (None, 32, 4)
        return
    assert torch.equal(out.patches.flatten(1, 2), hidden[:, prefix:])
    assert out.patches.shape[1:] == (4, 4, 32)
    assert (out.cls is not None) == has_cls
    if has_cls:
        assert torch.equal(out.cls, hidden[:, 0])


def test_timms_sizes_are_free_where_its_class_resizes_positions(timm_case: tuple[str, Any, Any]) -> None:
    name, model, tower = timm_case
    settings, prefix, _, free = TIMM[name]
    if not free:
        with pytest.raises(ConfigError, match=r"takes 32 x 32 pixels only, not 24 x 40; set size=\(32, 32\)"):
            tower(WIDE)
        return
    if "depth" not in settings:
        assert tower(PIXELS[..., :24, :].repeat(1, 1, 2, 2)).patches.shape[1:3] == (2 if "resnet" in name else 1, 2)
        with pytest.raises(ConfigError, match="24 x 40 pixels are less than one step of 32"):
            tower(WIDE)
        return
    wide: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True, **settings).eval()
    wide.load_state_dict(model.state_dict())  # the same weights in a model that was built for sizes that change
    with torch.no_grad():
        hidden = wide.forward_features(WIDE)
        hidden = wide.fc_norm(hidden) if name.startswith("eva02") else hidden
    out = tower(WIDE)
    assert torch.equal(out.patches.flatten(1, 2), hidden[:, prefix:])
    assert out.patches.shape[1:3] == (3, 5)


def test_timms_layers_are_its_intermediate_ones(timm_case: tuple[str, Any, Any]) -> None:
    name, model, tower = timm_case
    with torch.no_grad():
        want = model.forward_intermediates(PIXELS, indices=2, intermediates_only=True)
    for out, one in zip(tower.layers(PIXELS, 2, norm=False), want, strict=True):
        assert torch.equal(out.patches, one.permute(0, 2, 3, 1)), name


def test_timms_attention_and_keys(timm_case: tuple[str, Any, Any]) -> None:
    name, model, tower = timm_case
    _, prefix, has_cls, _ = TIMM[name]
    if not hasattr(model, "blocks"):
        with pytest.raises(ConfigError, match="convolutional"):
            tower.attention(PIXELS)
        return
    attention = model.blocks[-1].attn
    inputs: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    for block in model.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        full = AttentionExtract(model, ["blocks.1.attn.attn_drop"], method="hook")(PIXELS)["blocks.1.attn.attn_drop"]
    hook.remove()
    maps = tower.attention(PIXELS)
    assert maps.shape == (2, 2, 4, 4)
    if has_cls:
        assert (maps.flatten(2) - full[:, :, 0, prefix:]).abs().max() < 1e-6
    else:
        assert (maps.sum((-1, -2)) - 1).abs().max() < 1e-5
    if attention.qkv is not None:
        bias = attention.qkv.bias[32:64] if attention.qkv.bias is not None else 0
        want = (inputs[0] @ attention.qkv.weight[32:64].T + bias)[:, prefix:].unflatten(-1, (2, 16))
    else:
        want = attention.k_proj(inputs[0])[:, prefix:].unflatten(-1, (2, 16))
    assert (tower.keys(PIXELS) - want.unflatten(1, (4, 4)).movedim(3, 1)).abs().max() < 1e-6


def test_the_pooling_of_timms_siglip_is_the_querys_attention(timm_case: tuple[str, Any, Any]) -> None:
    name, model, tower = timm_case
    pool = getattr(model, "attn_pool", None)
    if pool is None or TIMM[name][2]:
        return
    patches = tower(PIXELS).patches.flatten(1, 2)
    with torch.no_grad():  # the weights are right if the pooling's own result can be built from them
        values = pool.kv(patches).chunk(2, -1)[1].unflatten(-1, (2, 16))
        mixed = pool.proj(torch.einsum("bhn,bnhd->bhd", tower.attention(PIXELS).flatten(2), values).flatten(1))
        assert (mixed + pool.mlp(pool.norm(mixed)) - pool(patches)).abs().max() < 1e-5


def test_timms_pictures_are_prepared_as_timm_does(timm_case: tuple[str, Any, Any]) -> None:
    """Mean, std, resize, crop. transformers' own processors would cut one pixel beside wherever the margin is odd."""
    tower = timm_case[2]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    picture = picture.resize((300, 200), Image.Resampling.BICUBIC)
    data = timm.data.resolve_model_data_config(tower.model)
    theirs = timm.data.create_transform(**data, is_training=False)(picture)
    ours = tower.processor(picture, return_tensors="pt").pixel_values[0]
    assert torch.equal(ours, theirs)


def test_a_directory_of_timms_is_told_from_one_of_transformers(timm_case: tuple[str, Any, Any]) -> None:
    folder = timm_case[2].name.removeprefix("timm:")
    with pytest.raises(ConfigError, match=f"in timm's format; write timm:{folder}"):
        load_tower(folder)


def torchvision_case(name: str) -> Any:
    """A small model of torchvision."""
    if name == "vit":
        sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
        return shaken(torchvision.models.VisionTransformer(**sizes))
    if name == "convnext":
        steps = [
            CNBlockConfig(8, 16, 1),
            CNBlockConfig(16, 16, 1),
            CNBlockConfig(16, 16, 1),
            CNBlockConfig(16, None, 1),
        ]
        return shaken(torchvision.models.ConvNeXt(steps))
    return shaken(ResNet(BasicBlock, [1, 1, 1, 1]))


@pytest.mark.parametrize(("name", "inside"), [("resnet", "layer4"), ("vit", "encoder.ln"), ("convnext", "features")])
def test_tokens_are_what_torchvision_pools(name: str, inside: str) -> None:
    model = torchvision_case(name)
    tower = Tower(model, None, name)
    seen: list[Tensor] = []
    hook = model.get_submodule(inside).register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        model(PIXELS)  # its own forward, up to class scores
        hook.remove()
        hidden = model.classifier[0](seen[0]) if name == "convnext" else seen[0]
    out = tower(PIXELS)
    assert tower.width == out.patches.shape[-1]
    if name == "vit":
        assert torch.equal(out.patches.flatten(1, 2), hidden[:, 1:]) and torch.equal(out.cls, hidden[:, 0])
        with pytest.raises(ConfigError, match="takes 32 x 32 pixels only, not 24 x 40"):
            tower(WIDE)
        assert torch.equal(tower.layers(PIXELS, 1)[0].patches, out.patches)
    else:
        assert torch.equal(out.patches, hidden.permute(0, 2, 3, 1))
        large = torch.randn(1, 3, 64, 96)
        assert [o.patches.shape[1:3] for o in tower.layers(large, 4)] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        with pytest.raises(ConfigError, match="convolutional"):
            tower.keys(PIXELS)


def test_torchvisions_vit_attention_and_keys_build_the_blocks_own_output() -> None:
    model = torchvision_case("vit")
    tower = Tower(model, None, "vit")
    attention = model.encoder.layers[-1].self_attention
    seen: list[tuple[Tensor, Tensor]] = []
    hook = attention.register_forward_hook(lambda m, args, out: seen.append((args[0], out[0])))
    tower(PIXELS)
    hook.remove()
    hidden, want = seen[0]
    query, _, value = (hidden @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
    keys = tower.keys(PIXELS).flatten(2, 3)  # [2, heads, patches, d]
    scores = torch.einsum("bhd,bhnd->bhn", query[:, 0].unflatten(-1, (2, 16)), keys) / 4
    maps = tower.attention(PIXELS).flatten(2)
    assert (torch.softmax(scores, -1) - maps / maps.sum(-1, keepdim=True)).abs().max() < 1e-6
    rest = 1 - maps.sum(-1, keepdim=True)  # on the class token itself
    mixed = torch.einsum("bhn,bnhd->bhd", torch.cat([rest, maps], -1), value.unflatten(-1, (2, 16)))
    assert (attention.out_proj(mixed.flatten(1)) - want[:, 0]).abs().max() < 1e-6


def test_an_untrained_model_of_torchvision_by_name() -> None:
    tower = load_tower("random:torchvision:resnet18")
    assert (tower.family, tower.width, tower.depth, tower.patch) == ("torchvision ResNet", 512, 4, 32)
    assert tower.processor.resample == Image.Resampling.BILINEAR  # as its weights were measured
    assert tower.processor.size == {"shortest_edge": 256}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8))
    theirs = torchvision.models.ResNet18_Weights.DEFAULT.transforms()(picture)
    assert torch.equal(tower.pixels([picture])[0], theirs)
    assert tower([Image.new("RGB", (40, 50))], size=(64, 32)).patches.shape == (1, 2, 1, 512)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_smal_patch16_224", "no timm model 'vit_smal_patch16_224'; did you mean .*vit_small_patch16_224"),
        ("timm:vit_small_patch16_224.agreg", "no timm weights .* did you mean .*vit_small_patch16_224.augreg"),
        ("timm:test_vit", "not on this machine and cannot be fetched .no network.; random: in front needs none"),
        ("random:timm:test_efficientnet", "no tower family 'timm EfficientNet'"),
        ("torchvision:resnet51", "no torchvision model 'resnet51'; did you mean .*resnet50"),
        ("torchvision:resnet50:IMAGENET1K_V3", "no torchvision weights 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V"),
        ("random:torchvision:squeezenet1_1", "no tower family 'torchvision SqueezeNet'"),
    ],
)
def test_names_that_other_libraries_do_not_have(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_tower(name)
    assert "\n" not in str(caught.value)
