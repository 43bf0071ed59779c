"""Every PEFT method on every family of towers: trains only what it names, loads back exactly, merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import timm
import torch
from torch import Tensor
from transformers import AutoModel

from dino_tower.architectures import build
from dino_tower.errors import ConfigError
from dino_tower.families.family import Model
from dino_tower.foreign import load_timm
from dino_tower.images import processor_for
from dino_tower.peft_adapter import Base, adapter_writer, inner, load_adapter, merged, weights_digest, wrap
from dino_tower.peft_layers import LAYERS
from dino_tower.peft_merging import write_merged
from dino_tower.peft_methods import METHODS, PeftSettings, peft_config
from dino_tower.tokens import tokens
from dino_tower.tower import Tower, load_tower

SIDE, PATCH = 32, 8
FAMILIES = ("", "_reg4", "_rope", "_siglip", "_clip", "timm")
# ranks that fit layers of 32 features
RANKS = {"oft": 8, "boft": 4, "vera": 8, "fourierft": 50, "ia3": None, "ln-tuning": None}
# what each method calls its parameters, and where they may sit
OWN = {
    "lora": "lora_", "dora": "lora_", "pissa": "lora_", "loha": "hada_", "lokr": "lokr_", "oft": "oft_",
    "boft": "boft_", "hra": "hra_", "vera": "vera_lambda_", "fourierft": "fourierft_", "ia3": "ia3_",
    "ln-tuning": "ln_tuning_",
}  # fmt: skip


def settings(method: str) -> PeftSettings:
    return PeftSettings(rank=RANKS.get(method, 4))


def model(family: str) -> Model:
    """The same small tower every time; biases, norms and tables are drawn too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "timm":
            made = timm.create_model(
                "vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, img_size=SIDE, patch_size=PATCH,
                embed_dim=32, depth=2, num_heads=2,
            )  # fmt: skip
        else:
            made = build(f"vits8{family}", image_size=SIDE, width=32, depth=2, heads=2)
        for name, p in made.named_parameters():
            if not name.endswith("mask_token"):
                p.data += 0.05 * torch.randn_like(p)
    return made.eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE + PATCH, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def patches(of: torch.nn.Module, pixels: Tensor) -> Tensor:
    return tokens(inner(of), pixels).patches


def moved(method: str, family: str) -> peft.PeftModel:
    """An adapter that does something: all that is trainable is moved."""
    adapted = wrap(model(family), method, settings(method)).eval()
    rng = torch.Generator().manual_seed(2)
    for p in adapted.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn(p.shape, generator=rng)
    return adapted


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_method_on_each_family(method: str, family: str, pixels: Tensor, tmp_path: Path) -> None:
    before = model(family)
    features = patches(before, pixels)
    fresh = wrap(model(family), method, settings(method)).eval()
    assert (patches(fresh, pixels) - features).abs().max() < 2e-6  # training starts from the tower

    trained = [name for name, p in fresh.named_parameters() if p.requires_grad]
    assert trained and all(OWN[method] in name for name in trained)
    tokens(inner(fresh), pixels).patches.square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in fresh.parameters())  # else DDP would wait for it

    adapted = moved(method, family)
    after = patches(adapted, pixels)
    assert (after - features).abs().max() > 1e-4
    base = Base("the tower", "", weights_digest(before), method)
    adapter_writer(adapted, base, tmp_path)(tmp_path)
    ours = load_adapter(model(family), tmp_path).eval()
    theirs = peft.PeftModel.from_pretrained(model(family), str(tmp_path)).eval()
    assert torch.equal(patches(ours, pixels), after) and torch.equal(patches(theirs, pixels), after)

    plain = merged(adapted)
    assert type(plain) is type(before) and plain.state_dict().keys() == before.state_dict().keys()
    assert (patches(plain, pixels) - after).abs().max() <= 2e-6
    assert torch.equal(patches(adapted, pixels), after)  # merging is done on a copy


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_directory_is_a_plain_tower(family: str, pixels: Tensor, tmp_path: Path) -> None:
    adapted = moved("lora", family)
    processor = processor_for(SIDE, PATCH)
    if family == "timm":
        processor = load_timm("vit_tiny_patch16_224", "timm", untrained=True).processor
        processor.crop_size = {"height": SIDE, "width": SIDE}
    out = tmp_path / "merged"
    gap = write_merged(Tower(model(family), processor, "tiny"), adapted, out, "A test.")
    assert gap <= 2e-6
    again = load_tower(f"timm:{out}" if family == "timm" else out)
    assert (again(pixels).patches - patches(adapted, pixels)).abs().max() <= 2e-6
    if family != "timm":
        _, info = AutoModel.from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
    with pytest.raises(ConfigError, match="exists already"):
        write_merged(Tower(model(family), processor, "tiny"), adapted, out, "A test.")


def test_a_vit_is_merged_too(pixels: Tensor, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    vits = [ViTModel(ViTConfig(**small, intermediate_size=64), add_pooling_layer=False).eval() for _ in range(2)]
    vits[1].load_state_dict(vits[0].state_dict())
    adapted = wrap(vits[0], "ia3")
    for p in adapted.parameters():
        p.data += 0.05 * p.requires_grad
    write_merged(Tower(vits[1], processor_for(SIDE, PATCH), "tiny"), adapted, tmp_path / "out", "A test.")
    again = load_tower(tmp_path / "out")
    assert (again(pixels).patches - patches(adapted, pixels)).abs().max() <= 2e-6


def test_other_classes_have_their_layers_named() -> None:
    from transformers import BeitConfig, BeitModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    vit = ViTModel(ViTConfig(**small, intermediate_size=64))
    assert _trainable(vit, "lora") == ("fc1", "fc2", "k_proj", "o_proj", "q_proj", "v_proj")  # and not pooler.dense
    assert _trainable(BeitModel(BeitConfig(**small, intermediate_size=64)), "ia3") == ("fc2", "k_proj", "v_proj")
    gated = Dinov2Model(Dinov2Config(**small, use_swiglu_ffn=True))
    assert _trainable(gated, "lora")[:2] == ("down_proj", "gate_proj")


def _trainable(made: Model, method: str) -> tuple[str, ...]:
    adapted = wrap(made, method, settings(method))
    marker = f".{OWN[method]}"
    return tuple(sorted({n.split(marker)[0].split(".")[-1] for n, p in adapted.named_parameters() if p.requires_grad}))


def test_a_pooling_head_of_the_same_spelling_stays_as_it_is() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    adapted = wrap(SiglipVisionModel(config), "lora", settings("lora"))
    assert not [n for n, p in adapted.named_parameters() if p.requires_grad and ".head." in n]


def test_layers_can_be_chosen() -> None:
    chosen = PeftSettings(rank=2, modules=("q_proj", "mlp.fc2"))
    adapted = wrap(model(""), "lora", chosen)
    names = {n.split(".lora_")[0].split(".", 5)[-1] for n, p in adapted.named_parameters() if p.requires_grad}
    assert names == {"attention.q_proj", "mlp.fc2"}


def test_an_adapter_names_its_base_by_a_relative_path(tmp_path: Path, pixels: Tensor) -> None:
    tower, home = tmp_path / "tower", tmp_path / "runs" / "adapted"
    model("").save_pretrained(tower)
    home.mkdir(parents=True)
    adapted = moved("lora", "")
    adapter_writer(adapted, Base("tower", str(tower), weights_digest(model("")), "lora"), home)(home)
    said = json.loads((home / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "../../tower" and said["task_type"] is None
    base = AutoModel.from_pretrained(home / said["base_model_name_or_path"])
    assert torch.equal(patches(peft.PeftModel.from_pretrained(base, home).eval(), pixels), patches(adapted, pixels))
    assert not list(home.glob("*.bin"))


def test_the_same_seed_draws_the_same_adapter_and_leaves_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = (wrap(model(""), "lora", settings("lora"), seed=3).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)


REFUSED = [
    ("an unknown method", "", "lorra", {}, "no method 'lorra'; did you mean 'lora'?"),
    ("an unknown layer", "", "lora", {"modules": ("query",)}, "no layer for lora to adapt 'query'"),
    ("a norm for LoRA", "", "lora", {"modules": ("norm1",)}, "no layer for lora to adapt 'norm1'"),
    ("a rank where there is none", "", "ia3", {"rank": 4}, "peft.rank: method ia3 has none; leave it out"),
    ("an alpha where there is none", "", "oft", {"alpha": 4.0}, "peft.alpha: method oft has none"),
    ("a dropout where there is none", "", "hra", {"dropout": 0.1}, "peft.dropout: method hra has none"),
    ("a rank of nothing", "", "lora", {"rank": 0}, "peft.rank is 0; it must be above 0"),
    ("dropout of everything", "", "lora", {"dropout": 1.0}, "peft.dropout is 1.0; it must lie between 0 and 1"),
    ("blocks that do not divide", "", "oft", {"rank": 24}, "blocks of 24 do not divide the 32 features"),
    ("more singular vectors than there are", "", "pissa", {"rank": 40}, "are 32, fewer than 40"),
    ("an odd number of reflections", "", "hra", {"rank": 3}, "3 reflections are odd"),
    ("more frequencies than weights", "", "fourierft", {"rank": 5000}, "are more than the 1024"),
]


@pytest.mark.parametrize(("case", "family", "method", "given", "says"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_cannot_work_is_refused(case: str, family: str, method: str, given: dict, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        peft_config(model(family), method, PeftSettings(**given))
    assert says in str(refused.value)


@pytest.mark.parametrize("arch", ["resnet18"])
def test_a_network_without_blocks_is_refused_with_what_it_can_take(arch: str) -> None:
    with pytest.raises(ConfigError, match="a resnet has none that are known; take a ViT, or train a head"):
        peft_config(build(arch, image_size=32, width=8), "lora", PeftSettings())


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[], Path]:
    def save() -> Path:
        adapter_writer(moved("lora", ""), Base("mine", "", weights_digest(model("")), "lora"), tmp_path)(tmp_path)
        return tmp_path

    return save


def test_an_adapter_for_another_base_is_refused(saved: Callable[[], Path]) -> None:
    folder, other = saved(), model("")
    other.layernorm.weight.data[0] += 1e-6
    with pytest.raises(ConfigError, match="an adapter for mine, not for yours: the weights below it are others"):
        load_adapter(other, folder, "yours")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "base.json"])
def test_a_missing_or_damaged_file_is_named(saved: Callable[[], Path], name: str) -> None:
    folder = saved()
    (folder / name).write_bytes((folder / name).read_bytes()[:40])
    with pytest.raises(ConfigError, match=name):
        load_adapter(model(""), folder)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"no adapter: it has no {name}"):
        load_adapter(model(""), folder)


def test_every_family_with_layers_is_one_that_towers_know() -> None:
    from dino_tower.families import FAMILIES as known

    assert set(LAYERS) <= set(known)
