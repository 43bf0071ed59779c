"""What check_vlm and image_tokens_for say: each sentence stands for something that transformers really does."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlavaConfig, LlavaForConditionalGeneration, ResNetConfig

import dino_tower
from dino_tower import check_vlm, image_tokens_for
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.tower import Tower
from dino_tower.vlm.dense import dense_settings_for

LLAVA = "LlavaForConditionalGeneration"


def config_of(name: str, tower: Tower, text_sizes: dict[str, Any], **arguments: Any) -> Any:
    """The config of a VLM of Llama and the tower."""
    return getattr(transformers, name.replace("ForConditionalGeneration", "Config"))(
        vision_config=copy.deepcopy(tower.model.config),
        text_config=transformers.LlamaConfig(**text_sizes),
        **{"image_token_id" if name.startswith("InternVL") else "image_token_index": 5, **arguments},
    )


def llava(tower: Tower, text_sizes: dict[str, Any], **arguments: Any) -> LlavaForConditionalGeneration:
    model = LlavaForConditionalGeneration(config_of(LLAVA, tower, text_sizes, **arguments))
    model.get_submodule("model.vision_tower").load_state_dict(tower.model.state_dict(), strict=True)
    return model


@pytest.mark.parametrize(
    ("kind", "tokens", "strategy", "more"),
    [("plain", 16, "default", 1), ("reg4", 20, "default", 5), ("rope", 16, "default", 1), ("siglip", 16, "full", 0)],
)
def test_llava(kind: str, tokens: int, strategy: str, more: int, towers: dict[str, Tower]) -> None:
    """The published table: N + R image tokens, since registers stay."""
    found = image_tokens_for(LLAVA, towers[kind])
    assert found.image_tokens == tokens
    assert (found.vision_feature_select_strategy, found.vision_feature_layer) == (strategy, -1)
    assert found.processor == {
        "patch_size": 16,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": more,
    }


@pytest.mark.parametrize(("family", "strategy"), [("ViT", "default"), ("IJepa", "full")])
def test_towers_of_other_families(family: str, strategy: str, text_sizes: dict[str, Any]) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    vision = getattr(transformers, f"{family}Config")(**sizes)
    wanted = image_tokens_for(LLAVA, vision)
    text = transformers.LlamaConfig(**text_sizes)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **wanted.config))
    seen = model.get_image_features(torch.zeros(1, 3, 64, 64)).pooler_output[0]
    assert (len(seen), wanted.image_tokens, wanted.vision_feature_select_strategy) == (16, 16, strategy)


def test_every_spelling_of_both_gives_the_same(towers: dict[str, Tower], text_sizes: dict[str, Any]) -> None:
    tower = towers["plain"]
    found = image_tokens_for(LLAVA, tower)
    model = llava(tower, text_sizes, vision_feature_layer=-1)
    for vlm in (LlavaForConditionalGeneration, "llava", model, model.config, LlavaConfig):
        assert image_tokens_for(vlm, tower) == found
    for spelled in (tower.name, Path(tower.name), tower.model, tower.model.config):
        assert image_tokens_for(LLAVA, spelled) == found
    assert dino_tower.image_tokens_for is image_tokens_for


def test_it_prints_well_and_stays_as_it_is(towers: dict[str, Tower]) -> None:
    found = image_tokens_for(LLAVA, towers["reg4"])
    assert str(found).splitlines() == [
        "LlavaForConditionalGeneration on dinov2_with_registers, 64 px: 20 image tokens",
        "  config: vision_feature_select_strategy='default', vision_feature_layer=-1, image_seq_length=20",
        "  processor: patch_size=16, vision_feature_select_strategy='default', num_additional_image_tokens=5",
        "  tower in: model.vision_tower",
        f"  warning: {LLAVA} takes 4 registers of this dinov2_with_registers for image tokens",
        "  note: the patches are read before the tower's final norm, which gets no gradient: freeze it, or DDP takes it"
        " for unused",
    ]
    with pytest.raises(FrozenInstanceError):
        found.image_tokens = 3  # type: ignore[misc]


def test_the_number_follows_the_processor_where_the_vlm_does(towers: dict[str, Tower]) -> None:
    """A tower with a position table of 64 px whose processor crops to 32: LLaVA sees 2 x 2 patches."""
    plain = towers["plain"]
    small = Tower(plain.model, processor_for(32, 16), "small")
    assert image_tokens_for(LLAVA, small).image_tokens == 4
    assert image_tokens_for(LLAVA, small, image_size=96).image_tokens == 36
    assert image_tokens_for("LlavaNextForConditionalGeneration", small).image_tokens == 16  # it goes by the config
    clip = Tower(towers["clip"].model, processor_for(32, 16), "small")
    with pytest.raises(ConfigError, match="a clip_vision_model in a VLM takes pictures of the tower's native 64 px"):
        image_tokens_for(LLAVA, clip)


@pytest.mark.parametrize(
    ("name", "kind", "size", "sentence"),
    [
        (LLAVA, "plain", 50, "50 px are not a multiple of the patch size 16"),
        ("InternVLForConditionalGeneration", "plain", 48, "merges 2 x 2 patches, and 48 px make a grid of 3 x 3; set"),
        ("LlavaNextForConditionalGeneration", "plain", 96, "takes pictures of the tower's native 64 px only, not 96"),
        ("PaliGemmaForConditionalGeneration", "siglip", 96, "siglip_vision_model in a VLM takes .* not 96"),
        ("LlavaForConditionalGenerations", "plain", None, "did you mean 'LlavaForConditionalGeneration'"),
        ("LlavaNextForConditionalGeneration", "reg4", None, "square of patches and nothing else, and gets 4 registers"),
        ("Gemma3ForConditionalGeneration", "plain", None, r"gets the class token as well; .*\(siglip_vision_model\)"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    name: str, kind: str, size: int | None, sentence: str, towers: dict[str, Tower]
) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        image_tokens_for(name, towers[kind], size)
    assert "\n" not in str(error.value)


def test_an_odd_grid_really_fails_in_internvl(towers: dict[str, Tower], text_sizes: dict[str, Any]) -> None:
    config = config_of("InternVLForConditionalGeneration", towers["plain"], text_sizes)
    model = transformers.InternVLForConditionalGeneration(config)
    with pytest.raises(RuntimeError, match="shape"):
        model.model.get_image_features(torch.zeros(1, 3, 48, 48))


def test_a_tower_that_is_no_vit_and_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ViT family that VLMs take 'resnet'"):
        image_tokens_for(LLAVA, ResNetConfig())
    with pytest.raises(ConfigError, match="no ViT family that VLMs take 'Linear'"):
        image_tokens_for(LLAVA, torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="cannot be read as a tower"):
        check_vlm(LLAVA, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # those that a block does not ask for
def test_a_class_is_judged_by_its_defaults(towers: dict[str, Tower]) -> None:
    with pytest.warns(UserWarning, match="vision_feature_layer=-2") as seen:
        said = check_vlm(LLAVA, towers["plain"])
    assert [str(w.message) for w in seen] == said
    assert len(said) == 1
    with pytest.warns(UserWarning, match="registers"):
        said = check_vlm(LLAVA, towers["reg4"])
    assert len(said) == 2
    with pytest.warns(UserWarning, match="'default': .* cuts off the first patch, since .*; set it to 'full'"):
        check_vlm(LLAVA, towers["siglip"])
    with pytest.warns(UserWarning, match="image_grid_pinpoints") as seen:
        check_vlm("LlavaNextForConditionalGeneration", towers["siglip"])
    assert len(seen) == 3
    with pytest.warns(UserWarning, match="forgets the tower when it is saved and loaded"):
        check_vlm("InternVLForConditionalGeneration", towers["plain"])
    with pytest.warns(UserWarning, match="cannot pool 4 x 4 patches to mm_tokens_per_image=256; set it to 16"):
        check_vlm("Gemma3ForConditionalGeneration", towers["siglip"])


@pytest.mark.parametrize(("layer", "silent"), [(-2, True), (-1, False)])
def test_the_layer_warning_is_true(
    layer: int, silent: bool, towers: dict[str, Tower], text_sizes: dict[str, Any]
) -> None:
    """With -2, LLaVA's default, the last block gets no gradient: under DDP an error hours into somebody's day."""
    tower = towers["plain"]
    model = llava(tower, text_sizes, vision_feature_layer=layer)
    tokens = torch.full((1, 16), 5)
    model(input_ids=tokens, pixel_values=torch.randn(1, 3, 64, 64)).logits.square().mean().backward()
    last = model.get_submodule("model.vision_tower.encoder.layer.3")
    assert all(p.grad is None for p in last.parameters()) == silent
    if silent:
        with pytest.warns(UserWarning, match="vision_feature_layer=-2: .* get no gradient .* set it to -1"):
            check_vlm(model, tower)
    else:
        assert check_vlm(model, tower) == []


def test_a_layer_that_the_tower_does_not_have(towers: dict[str, Tower], text_sizes: dict[str, Any]) -> None:
    """VipLLaVA's own layers want 11 blocks."""
    name = "VipLlavaForConditionalGeneration"
    assert image_tokens_for(name, towers["plain"]).vision_feature_layer == [-1]
    deep = transformers.Dinov2Config(num_hidden_layers=12, image_size=64, patch_size=16)
    assert image_tokens_for(name, deep).vision_feature_layer == [-1, -5, -8, -11, 6]
    with pytest.raises(ConfigError, match="vision_feature_layer=-8, and the tower has 4 blocks"):
        check_vlm(config_of(name, towers["plain"], text_sizes), towers["plain"])


def test_tiles_of_another_size_than_the_towers(towers: dict[str, Tower], text_sizes: dict[str, Any]) -> None:
    name = "LlavaNextForConditionalGeneration"
    config = config_of(name, towers["plain"], text_sizes, vision_feature_layer=-1)
    with pytest.raises(ConfigError, match=r"tiles of the tower's 64 px, .*\[336, 672\].* set them to \[\[64, 128\]"):
        check_vlm(config, towers["plain"])
    config.image_grid_pinpoints = image_tokens_for(name, towers["plain"]).config["image_grid_pinpoints"]
    assert check_vlm(config, towers["plain"]) == []


def test_forgotten_weights_and_a_vlm_built_for_another_tower(
    towers: dict[str, Tower], text_sizes: dict[str, Any]
) -> None:
    """A VLM made from configs has a random tower inside, and trains with it without complaint."""
    tower = towers["plain"]
    fresh = LlavaForConditionalGeneration(config_of(LLAVA, tower, text_sizes, vision_feature_layer=-1))
    with pytest.warns(UserWarning, match="other weights than the tower"):
        check_vlm(fresh, tower)
    assert check_vlm(fresh, tower.name) == []  # judged by its settings: a name has no weights in memory
    with pytest.raises(ConfigError, match=r"another tower \(family dinov2, not dinov3_vit\)"):
        check_vlm(fresh, towers["rope"])
    deeper = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=6, image_size=64, patch_size=16)
    with pytest.raises(ConfigError, match=r"another tower \(depth 4, not 6\)"):
        check_vlm(fresh, deeper)
    uper = transformers.UperNetConfig(backbone_config=copy.deepcopy(tower.model.config))
    with pytest.raises(ConfigError, match=r"another tower \(family dinov2, not dinov3_vit\)"):
        check_vlm(uper, towers["rope"])


def test_internvl_loaded_again_is_refused(towers: dict[str, Tower], text_sizes: dict[str, Any], tmp_path: Path) -> None:
    """What was saved around a SigLIP comes back as InternVL's own vision model, with random weights and no error."""
    name, tower = "InternVLForConditionalGeneration", towers["siglip"]
    wanted = image_tokens_for(name, tower)
    model = transformers.InternVLForConditionalGeneration(config_of(name, tower, text_sizes, **wanted.config))
    model.get_submodule(wanted.module).load_state_dict(tower.model.state_dict(), strict=True)
    model.save_pretrained(tmp_path)
    again = transformers.InternVLForConditionalGeneration.from_pretrained(tmp_path)
    assert type(again.get_submodule(wanted.module)).__name__ == "InternVLVisionModel"
    with pytest.raises(ConfigError, match="family internvl_vision, not siglip_vision_model"):
        check_vlm(again, tower)


def test_a_vlm_with_adapters_is_judged_by_its_settings(towers: dict[str, Tower], text_sizes: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    tower = towers["plain"]
    model = llava(tower, text_sizes, vision_feature_layer=-1)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*vision_tower.*\.(q_proj|v_proj)"))
    assert check_vlm(adapted, tower) == []
    adapted.config.vision_feature_layer = -2
    with pytest.warns(UserWarning, match="vision_feature_layer=-2"):
        check_vlm(adapted, tower)


def test_a_depth_model_that_repeats_the_wrong_patch_size(towers: dict[str, Tower]) -> None:
    """Its default of 14 fits 64 px by chance, and makes a depth map of 56."""
    tower = towers["plain"]
    wanted = dense_settings_for("DepthAnythingForDepthEstimation", tower)
    assert wanted.backbone == {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.AutoConfig.from_pretrained(tower.name, **wanted.backbone),
        reassemble_hidden_size=32,
    )
    out = transformers.DepthAnythingForDepthEstimation(config)(torch.zeros(1, 3, 64, 64))
    assert out.predicted_depth.shape == (1, 56, 56)
    with pytest.raises(ConfigError, match="patch_size=14 is not the tower's; set patch_size=16"):
        check_vlm(config, tower)


def test_levels_of_towers_of_any_depth() -> None:
    def levels(name: str, depth: int) -> list[int]:
        return dense_settings_for(name, transformers.Dinov2Config(num_hidden_layers=depth)).backbone["out_indices"]

    assert levels("DPTForDepthEstimation", 12) == [3, 6, 9, 12]
    assert levels("DPTForDepthEstimation", 3) == [0, 1, 2, 3]
    assert levels("DetrForObjectDetection", 12) == [12]
    assert levels("GroundingDinoForObjectDetection", 12) == [4, 8, 12]


def test_the_facts_are_read_without_torch() -> None:
    code = "import sys, dino_tower.vlm; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
