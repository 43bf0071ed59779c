"""attach_tower: any tower in any VLM, or a reason why not; inside it sees what it sees outside."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_tower import image_tokens_for
from dino_tower.adapters.vlm import attach_tower, freeze_unreached, tower_of
from dino_tower.errors import ConfigError
from dino_tower.tower import Tower
from dino_tower.vlm.facts import VLMS

CLIENTS = [name for name, fact in VLMS.items() if fact.module == "model.vision_tower" and not fact.refuses]
KINDS = ("plain", "reg4", "rope", "siglip", "clip")
LLAVA = "LlavaForConditionalGeneration"
# What a new tower may still be warned of: nothing else.
EXPECTED = ("registers", "class token", "cuts off the first patch", "forgets the tower")

OldVlm = Callable[[str], tuple[Any, Any, str]]


def run(vlm: Any, processor: Any, prompt: str, pictures: list[Any], tower: Tower) -> tuple[int, list[dict[str, Any]]]:
    """Two pictures forward, one generated from; the image tokens a tower's picture gives, and the inputs."""
    seen: dict[str, Any] = {}
    inside = tower_of(vlm)
    hook = inside.register_forward_hook(
        lambda _, args, kwargs, out: seen.update(pixels=(*args, *kwargs.values())[0], out=out), with_kwargs=True
    )
    also = vlm.model.multi_modal_projector.register_forward_hook(lambda _, args, out: seen.update(tokens=out))
    inputs = [processor(images=picture, text=prompt, return_tensors="pt") for picture in pictures]
    with torch.no_grad():
        written = vlm.generate(**inputs[0], max_new_tokens=2, do_sample=False)
        assert written.shape[1] > inputs[0].input_ids.shape[1]
        vlm(**inputs[0])
        outside = tower.model(seen["pixels"])
    hook.remove()
    also.remove()
    assert torch.equal(seen["out"].last_hidden_state, outside.last_hidden_state)
    assert seen["pixels"].std() > 0.2
    return seen["tokens"].shape[:-1].numel() // len(seen["pixels"]), inputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLIENTS)
def test_any_tower_in_any_vlm(
    name: str, kind: str, old_vlm: OldVlm, towers: dict[str, Tower], pictures: list[Any], tmp_path: Path
) -> None:
    """Where it is refused, the same tower reduced to its patches is taken; else it runs, saves and loads."""
    old, old_processor, prompt = old_vlm(name)
    before = {key: value.clone() for key, value in old.state_dict().items()}
    tower = towers[kind]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        try:
            vlm, processor = attach_tower(old, tower, old_processor)
        except ConfigError as error:
            assert any(word in str(error) for word in EXPECTED), error
            assert str(error) == refusal(name, tower)
            vlm, processor = attach_tower(old, tower, old_processor, patches_only=True)
    for warning in said:
        assert any(word in str(warning.message) for word in EXPECTED), warning.message
    assert type(vlm) is type(old)
    inside = tower_of(vlm)
    assert all(torch.equal(value, before[key]) for key, value in old.state_dict().items())
    assert vlm.model.language_model is old.model.language_model
    same = Tower(inside, tower.processor, "inside")
    count, inputs = run(vlm, processor, prompt, pictures, same)
    wanted = image_tokens_for(name, same)
    assert count == wanted.image_tokens
    assert torch.equal(same(pictures).patches, tower(pictures).patches)
    vlm.save_pretrained(tmp_path)
    again = type(vlm).from_pretrained(tmp_path, config=vlm.config)
    assert again.state_dict().keys() == vlm.state_dict().keys()
    assert all(torch.equal(value, vlm.state_dict()[key]) for key, value in again.state_dict().items())
    if not name.startswith("Gemma3"):  # its projector starts at zero
        one, other = (vlm(**batch).logits[:, -1] for batch in inputs)
        assert not torch.equal(one, other), "another picture, the same logits"
    unreached(vlm, inputs[0])


def refusal(name: str, tower: Tower) -> str:
    with pytest.raises(ConfigError) as error:
        image_tokens_for(name, tower)
    return str(error.value)


def unreached(vlm: Any, batch: dict[str, Any]) -> None:
    """DDP stops at weights that ask for a gradient and get none: the tower's and projector's all get theirs."""
    vlm.model.language_model.requires_grad_(True)
    if hasattr(vlm.model.multi_modal_projector, "mm_input_projection_weight"):
        torch.nn.init.normal_(vlm.model.multi_modal_projector.mm_input_projection_weight)
    vlm(**batch).logits.square().mean().backward()
    inside = [(key, p) for key, p in vlm.named_parameters() if "vision_tower" in key or "projector" in key]
    assert [key for key, p in inside if p.requires_grad and p.grad is None] == []
    frozen = {key for key, p in inside if not p.requires_grad}
    assert frozen == set(freeze_unreached(vlm))
    for parameter in vlm.model.language_model.parameters():
        parameter.grad = None


def test_registers_leak_into_llava_with_a_warning_and_not_at_all_with_patches_only(
    old_vlm: OldVlm, towers: dict[str, Tower], pictures: list[Any]
) -> None:
    old, processor, prompt = old_vlm(LLAVA)
    with pytest.warns(UserWarning, match="takes 4 registers of this dinov2_with_registers for image tokens"):
        leaky, leaky_processor = attach_tower(old, towers["reg4"], processor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean, clean_processor = attach_tower(old, towers["reg4"], processor, patches_only=True)
    counts = []
    for vlm, words in ((leaky, leaky_processor), (clean, clean_processor)):
        inside = Tower(tower_of(vlm), towers["reg4"].processor, "inside")
        counts.append(run(vlm, words, prompt, pictures, inside)[0])
    assert counts == [20, 16]


def test_layer_strategy_and_size_are_taken_as_asked_for(
    old_vlm: OldVlm, towers: dict[str, Tower], pictures: list[Any]
) -> None:
    old, processor, prompt = old_vlm(LLAVA)
    with pytest.warns(UserWarning, match="takes the class token of this dinov2 for image tokens") as said:
        vlm, words = attach_tower(old, towers["plain"], processor, strategy="full", layer=-2, image_size=96)
    assert any("the blocks behind it and the final norm do nothing" in str(w.message) for w in said)
    assert (vlm.config.vision_feature_layer, vlm.config.vision_feature_select_strategy) == (-2, "full")
    inside = Tower(tower_of(vlm), towers["plain"].processor, "inside")
    assert run(vlm, words, prompt, pictures, inside)[0] == 6 * 6 + 1
    assert {p.requires_grad for p in tower_of(vlm).encoder.layer[1].parameters()} == {False}
    assert tower_of(vlm).encoder.layer[0].attention.q_proj.weight.requires_grad


def test_a_strategy_that_drops_a_patch_is_named(old_vlm: OldVlm, towers: dict[str, Tower]) -> None:
    old, processor, _ = old_vlm(LLAVA)
    with pytest.warns(UserWarning, match="cuts off the first patch, since this siglip_vision_model has no class token"):
        attach_tower(old, towers["siglip"], processor, strategy="default")
    old, processor, _ = old_vlm("LlavaNextForConditionalGeneration")
    with pytest.raises(ConfigError, match=r"cuts off the first patch.*set it to 'full'"):
        attach_tower(old, towers["siglip"], processor, strategy="default")


def test_projector_is_new_or_kept(old_vlm: OldVlm, make_tower: Callable[..., Tower]) -> None:
    """A new tower speaks another language: its projector is drawn anew, unless the user says that it fits."""
    old, _, _ = old_vlm(LLAVA)
    twin = make_tower("vitt8_siglip", side=32, width=16, depth=1, seed=5)
    weights = old.model.multi_modal_projector.state_dict()
    kept, none = attach_tower(old, twin, projector="keep")
    new, _ = attach_tower(old, twin)
    assert none is None
    for key, value in weights.items():
        assert torch.equal(kept.model.multi_modal_projector.state_dict()[key], value)
    assert not torch.equal(new.model.multi_modal_projector.linear_1.weight, weights["linear_1.weight"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (LLAVA, {"projector": "keep"}, "the tower has another width"),
        (LLAVA, {"projector": "perceiver"}, "no projector 'perceiver'"),
        (LLAVA, {"options": {"tokens": 4}}, "options are for a projector by name"),
        (LLAVA, {"strategy": "fill"}, "did you mean 'full'?"),
        (LLAVA, {"layer": 7}, "vision_feature_layer=7, and the tower has 2 blocks"),
        (LLAVA, {"image_size": 60}, "60 px are not a multiple of the patch size 16"),
        ("PaliGemmaForConditionalGeneration", {"strategy": "full"}, "has no vision_feature_select_strategy"),
        ("PaliGemmaForConditionalGeneration", {"layer": -2}, "it has no layer to choose"),
        ("PaliGemmaForConditionalGeneration", {"projector": "linear"}, "has a projector of its own"),
        ("InternVLForConditionalGeneration", {"image_size": 48}, "merges 2 x 2 patches"),
    ],
)
def test_mistakes(name: str, options: dict[str, Any], message: str, old_vlm: OldVlm, towers: dict[str, Tower]) -> None:
    old, processor, _ = old_vlm(name)
    with pytest.raises(ConfigError) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attach_tower(old, towers["plain"], processor, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_vlm_or_no_tower_is_refused(old_vlm: OldVlm, towers: dict[str, Tower]) -> None:
    from dino_tower import load_tower

    with pytest.raises(ConfigError, match="no VLM class that takes a tower 'Dinov2Model'"):
        attach_tower(towers["plain"].model, towers["plain"])
    old, processor, _ = old_vlm(LLAVA)
    with pytest.raises(ConfigError, match="is no model of transformers, and a VLM takes no other"):
        attach_tower(old, load_tower("random:timm:vit_tiny_patch16_224"), processor)
    with pytest.raises(ConfigError, match="no tower 'runs/nowhere/at/all'"):
        attach_tower(old, "runs/nowhere/at/all", processor)
