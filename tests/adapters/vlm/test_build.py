"""build_vlm: a LLaVA from a tower and a language model, which says alone what it says inside."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from dino_tower.adapters.fusion import fuse_towers
from dino_tower.adapters.projectors import PROJECTORS
from dino_tower.adapters.vlm import (
    ProjectedLlavaForConditionalGeneration,
    attach_tower,
    build_vlm,
    tower_of,
    tower_targets,
)
from dino_tower.errors import ConfigError
from dino_tower.tower import Tower

OPTIONS: dict[str, dict[str, int]] = {
    "linear": {},
    "mlp": {},
    "pixel-shuffle": {"factor": 2},
    "c-abstractor": {"tokens": 4, "depth": 1, "hidden": 16},
    "resampler": {"tokens": 3, "heads": 2},
}
TOKENS = {"linear": 16, "mlp": 16, "pixel-shuffle": 4, "c-abstractor": 4, "resampler": 3}
KINDS = ("plain", "reg4", "rope", "siglip", "clip")
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projector", PROJECTORS)
def test_any_projector_on_any_tower(
    projector: str,
    kind: str,
    towers: dict[str, Tower],
    llama: Any,
    plain_tokenizer: Any,
    pictures: list[Any],
    tmp_path: Path,
) -> None:
    """The tokenizer has never heard of "<image>"; a tower with registers comes as its patches; all of it loads back."""
    alone = llama(input_ids=torch.tensor([[4, 5, 6]])).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        vlm, processor = build_vlm(
            towers[kind], llama, plain_tokenizer, projector=projector, options=OPTIONS[projector] or None
        )
    native = projector == "mlp"
    assert type(vlm) is (LlavaForConditionalGeneration if native else ProjectedLlavaForConditionalGeneration)
    assert torch.equal(vlm(input_ids=torch.tensor([[4, 5, 6]])).logits[..., : alone.shape[-1]], alone)
    assert torch.equal(
        Tower(tower_of(vlm), processor.image_processor, "")(pictures).patches, towers[kind](pictures).patches
    )
    prompt = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert prompt == "<s>USER: <image>\nwhat is it ? ASSISTANT:"
    batch = processor(images=pictures[0], text=prompt, return_tensors="pt")
    assert (batch.input_ids == vlm.config.image_token_id).sum() == TOKENS[projector]
    other = processor(images=pictures[1], text=prompt, return_tensors="pt")
    assert not torch.equal(vlm(**batch).logits[:, -1], vlm(**other).logits[:, -1])
    written = vlm.generate(**batch, max_new_tokens=3, do_sample=False)
    vlm.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, words = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(vlm)
    assert again.state_dict().keys() == vlm.state_dict().keys()
    assert all(torch.equal(value, vlm.state_dict()[key]) for key, value in again.state_dict().items())
    inputs = words(
        images=pictures[0], text=words.apply_chat_template(QUESTION, add_generation_prompt=True), return_tensors="pt"
    )
    assert torch.equal(again.generate(**inputs, max_new_tokens=3, do_sample=False), written)


def test_what_other_processes_load(towers: dict[str, Tower], llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    """LLaVA of a plain tower in one that has never imported dino_tower; a fused tower where only that is imported."""
    fuse_towers([towers["plain"], towers["siglip"]], output=tmp_path / "fused")
    vlm, processor = build_vlm(towers["plain"], llama, tokenizer)
    vlm.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    code = (
        "import sys, transformers as t\n"
        "model = t.AutoModelForImageTextToText.from_pretrained(sys.argv[1])\n"
        "processor = t.AutoProcessor.from_pretrained(sys.argv[1])\n"
        "assert 'dino_tower' not in sys.modules\n"
        "norm = float(model.model.vision_tower.layernorm.weight.sum())\n"
        "print(type(model).__name__, type(processor).__name__, norm)\n"
        "import dino_tower\n"
        "tower = dino_tower.load_tower(sys.argv[1] + '/fused')\n"
        "print(tower.family, tower.width)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["LlavaForConditionalGeneration", "LlavaProcessor", "32.0", "dino_tower_fused", "64"]


def test_another_size_reaches_pictures_of_every_processor(
    towers: dict[str, Tower], llama: Any, tokenizer: Any, pictures: list[Any]
) -> None:
    """DINOv3's resizes and cuts nothing: pictures stayed as they were while the VLM counted tokens of larger ones."""
    images = transformers.DINOv3ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.1] * 3)
    tower = Tower(towers["rope"].model, images, "rope")
    for side in (64, 96):
        vlm, processor = build_vlm(tower, llama, tokenizer, image_size=side)
        batch = processor(images=pictures[0], text="<image> what", return_tensors="pt")
        assert batch.pixel_values.shape[-2:] == (side, side)
        assert list(processor.image_processor.image_mean) == [0.1] * 3
        assert vlm(**batch).logits.isfinite().all()


LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", {}),
    "Qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "GPT2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 32}),
    "OPT": ("OPTForCausalLM", {"ffn_dim": 32, "word_embed_proj_dim": 32}),
    "GPTNeoX": ("GPTNeoXForCausalLM", {}),
}


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_any_causal_language_model(
    family: str,
    towers: dict[str, Tower],
    text_sizes: dict[str, Any],
    plain_tokenizer: Any,
    pictures: list[Any],
    tmp_path: Path,
) -> None:
    """From a directory, tied embeddings included; a picture changes what it says, and it comes back as it was."""
    kind, more = LANGUAGE_MODELS[family]
    sizes = more if family == "GPT2" else {**text_sizes, **more}
    model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**sizes)).eval()
    model.save_pretrained(tmp_path / "lm")
    plain_tokenizer.save_pretrained(tmp_path / "lm")
    alone = model(input_ids=torch.tensor([[4, 5, 6]])).logits
    vlm, processor = build_vlm(towers["plain"], tmp_path / "lm")
    assert torch.allclose(vlm(input_ids=torch.tensor([[4, 5, 6]])).logits[..., : alone.shape[-1]], alone, atol=1e-6)
    batch = [processor(images=p, text="<image> what", return_tensors="pt") for p in pictures]
    one, other = (vlm(**inputs).logits[:, -1] for inputs in batch)
    assert not torch.equal(one, other)
    vlm.save_pretrained(tmp_path / "vlm")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm")
    assert torch.equal(again(**batch[0]).logits[:, -1], one)
    if more.get("tie_word_embeddings"):
        assert again.lm_head.weight is again.model.language_model.get_input_embeddings().weight


def test_lora_on_the_tower_alone_touches_no_word(
    towers: dict[str, Tower], llama: Any, tokenizer: Any, pictures: list[Any], tmp_path: Path
) -> None:
    """Its weights stay as they are, saved adapters load, merged ones say the same."""
    for kind in KINDS:
        vlm, processor = build_vlm(towers[kind], llama, tokenizer)
        before = {key: value.clone() for key, value in vlm.state_dict().items()}
        torch.manual_seed(0)
        adapted = get_peft_model(vlm, LoraConfig(r=2, target_modules=tower_targets(vlm), init_lora_weights=False))
        learns = [key for key, p in adapted.named_parameters() if p.requires_grad]
        assert learns and all("vision_tower" in key and "lora_" in key for key in learns), kind
        batch = processor(images=pictures[0], text="<image> what", return_tensors="pt")
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
        adapted(**batch).logits.square().mean().backward()
        optimizer.step()
        after = {
            key.replace(".base_layer", "").removeprefix("base_model.model."): v
            for key, v in adapted.state_dict().items()
        }
        assert all(torch.equal(after[key], value) for key, value in before.items())
        out = adapted(**batch).logits
        adapted.save_pretrained(tmp_path / kind)
        again = type(adapted).from_pretrained(build_vlm(towers[kind], llama, tokenizer)[0], tmp_path / kind)
        again.base_model.model.model.multi_modal_projector.load_state_dict(vlm.model.multi_modal_projector.state_dict())
        assert torch.equal(again(**batch).logits, out)
        assert torch.allclose(adapted.merge_and_unload()(**batch).logits, out, atol=2e-6)


def test_attach_changes_the_projector_too(
    towers: dict[str, Tower], llama: Any, tokenizer: Any, pictures: list[Any]
) -> None:
    """A built LLaVA gets another tower, and a projector by name; one of ours keeps its kind."""
    built, processor = build_vlm(towers["plain"], llama, tokenizer)
    few, words = attach_tower(built, towers["siglip"], processor, projector="resampler", options=OPTIONS["resampler"])
    batch = words(images=pictures[0], text="<image> what", return_tensors="pt")
    assert (batch.input_ids == 5).sum() == 3
    assert few.generate(**batch, max_new_tokens=2).shape[1] > batch.input_ids.shape[1]
    other, words = attach_tower(few, towers["rope"], words, image_size=96)
    assert (other.config.projector, other.config.projector_grid) == ("resampler", [6, 6])
    batch = words(images=pictures[0], text="<image> what", return_tensors="pt")
    assert (batch.input_ids == 5).sum() == 3
    assert other(**batch).logits.isfinite().all()
    back, _ = attach_tower(other, towers["clip"], words, projector="mlp")
    assert type(back) is LlavaForConditionalGeneration


@pytest.mark.parametrize(
    ("language_model", "options", "message"),
    [
        ("/nowhere/at/all", {}, "cannot be read as a language model: there is no such directory"),
        ("llama", {"projector": "perceiver"}, "no projector 'perceiver'"),
        (
            "llama",
            {"projector": "pixel-shuffle", "options": {"factor": 3}},
            "merges 3 x 3 patches, and the grid is 4 x 4",
        ),
        ("llama", {"layer": 9}, "vision_feature_layer=9, and the tower has 2 blocks"),
        ("phi", {}, "has a bias, and LLaVA's has none"),
        ("cohere", {}, "says something else inside LLaVA than alone"),
        ("bert", {}, "has no language head"),
    ],
)
def test_mistakes(
    language_model: str,
    options: dict[str, Any],
    message: str,
    towers: dict[str, Tower],
    llama: Any,
    tokenizer: Any,
    text_sizes: dict[str, Any],
) -> None:
    made: dict[str, Callable[[], Any]] = {
        "llama": lambda: llama,
        "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**text_sizes)),
        "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**text_sizes)),
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**text_sizes)),
    }
    given = made[language_model]() if language_model in made else language_model
    with pytest.raises(ConfigError) as error:
        build_vlm(towers["plain"], given, tokenizer, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_in_memory_needs_its_tokenizer(towers: dict[str, Tower], llama: Any) -> None:
    with pytest.raises(ConfigError, match="a language model in memory needs its tokenizer"):
        build_vlm(towers["plain"], llama)
