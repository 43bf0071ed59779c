"""Five tiny towers, pictures, a tokenizer, language models, and VLMs that somebody built around another tower."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vlm_parts import SPECIAL, TEXT_SIZES, VLMS, word_tokenizer

from dino_tower import image_tokens_for
from dino_tower.architectures import build
from dino_tower.images import processor_for
from dino_tower.tower import Tower, load_tower

PATCH, SIDE = 16, 64  # a grid of 4 x 4
SMALL = {"width": 32, "depth": 2, "heads": 2}
WORDS = ("USER:", "ASSISTANT:", "what", "where", "red", "blue", "ring", "left", "right", "yes", "no", "is", "it", "?")
KINDS = {"plain": "", "reg4": "_reg4", "rope": "_rope", "siglip": "_siglip", "clip": "_clip"}


def save_tower(folder: Path, arch: str, side: int = SIDE, seed: int = 0, **sizes: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(arch, image_size=side, **{**SMALL, **sizes})
    model.save_pretrained(folder)
    processor_for(side, model.config.patch_size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_tower(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tower]:
    """make_tower("vits14_reg4", side=56, seed=1, width=24): a tower of random weights, from its directory."""

    def make(arch: str, side: int = SIDE, seed: int = 0, **sizes: int) -> Tower:
        return load_tower(save_tower(tmp_path_factory.mktemp(arch), arch, side, seed, **sizes))

    return make


@pytest.fixture(scope="session")
def towers(make_tower: Callable[..., Tower]) -> dict[str, Tower]:
    return {kind: make_tower(f"vitt16{suffix}") for kind, suffix in KINDS.items()}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One that knows the special tokens that processors ask for. A new one each: some add words."""
    return word_tokenizer(*SPECIAL, *WORDS, special=True)


@pytest.fixture
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """One that has never heard of pictures."""
    return word_tokenizer(*WORDS)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return LlamaForCausalLM(LlamaConfig(**TEXT_SIZES)).eval()


@pytest.fixture
def old_vlm(make_tower: Callable[..., Tower], tokenizer: Any) -> Callable[[str], tuple[Any, Any, str]]:
    """old_vlm(class name) -> the VLM around a narrow SigLIP of 32 px, its processor, and a prompt."""

    def make(name: str) -> tuple[Any, Any, str]:
        parts, tower = VLMS[name], make_tower("vitt8_siglip", side=32, width=16, depth=1)
        wanted = image_tokens_for(name, tower)
        vision, text = copy.deepcopy(tower.model.config), getattr(transformers, parts.text_config)(**TEXT_SIZES)
        arguments = {**dict(parts.extras), **wanted.config}
        config = getattr(transformers, parts.config)(vision_config=vision, text_config=text, **arguments)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, name)(config).eval()
        images = getattr(transformers, parts.image_processor) if parts.image_processor else None
        more = dict(wanted.processor)
        if parts.video_processor:
            more["video_processor"] = getattr(transformers, parts.video_processor)()
        processor = getattr(transformers, parts.processor)(
            image_processor=images(**wanted.image_processor) if images else tower.processor,
            tokenizer=tokenizer,
            chat_template="{{ messages[0]['content'] }}",
            **more,
        )
        return model, processor, parts.prompt

    return make


@pytest.fixture
def language_model(llama: LlamaForCausalLM, plain_tokenizer: Any, tmp_path: Path) -> Path:
    """Its directory, with a tokenizer that has never heard of pictures."""
    llama.save_pretrained(tmp_path / "lm")
    plain_tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """Eight pictures of one colour and what they are asked, one conversation without a picture, one with two."""
    folder = tmp_path / "talk"
    folder.mkdir()
    entries: list[dict[str, Any]] = []
    for i in range(8):
        colour = ("red", "blue")[i % 2]
        Image.new("RGB", (70, 60), ((200, 10 * i, 0), (0, 10 * i, 200))[i % 2]).save(folder / f"{i}.png")
        turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": f"{colour} ring"}]
        turns += [{"from": "human", "value": "is it red ?"}, {"from": "gpt", "value": "yes" if i % 2 == 0 else "no"}]
        entries.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    both = "<image> <image> is it left ?"
    entries[6] = {"image": ["6.png", "7.png"], "conversations": [
        {"from": "human", "value": both}, {"from": "gpt", "value": "yes"}]}  # fmt: skip
    entries[7] = {"conversations": [{"from": "human", "value": "is it ?"}, {"from": "gpt", "value": "no"}]}
    (folder / "talk.json").write_text(json.dumps(entries))
    return folder / "talk.json"
