"""Five tiny towers on disk, pictures, a tokenizer and a language model, and the table in docs/clients.md."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from dino_tower.architectures import build
from dino_tower.export.writing import export_tower
from dino_tower.images import processor_for
from dino_tower.tower import Tower, load_tower

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
PATCH, SIDE = 16, 64  # a grid of 4 x 4
SMALL = {"width": 32, "depth": 4, "heads": 2}
SPECIAL = ("<image>", "<video>", "<img>", "</img>", "<|IMG_PATCH|>", "<start_of_image>", "<end_of_image>", "<line>")


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., list[str]]) -> dict[str, Tower]:
    """`plain` is exported from a run of one step; the others are saved as a run saves them."""
    from accelerate.state import AcceleratorState, GradientState

    from dino_tower.pretrain.train import main

    folder = tmp_path_factory.mktemp("towers")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sizes = ("--crops.global-size", str(SIDE), "--crops.local-size", "32", "--model.depth", "4")
    assert main([*tiny("--arch", "vitt16", "--steps", "1", *sizes), "--output", str(folder / "run")]) == 0
    export_tower(folder / "run", folder / "plain")
    for kind in ("reg4", "rope", "siglip", "clip"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            build(f"vitt16_{kind}", image_size=SIDE, **SMALL).save_pretrained(folder / kind)
        processor_for(SIDE, PATCH).save_pretrained(folder / kind)
    return {kind: load_tower(folder / kind) for kind in ("plain", "reg4", "rope", "siglip", "clip")}


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Two, of one size."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Words by white space, and the special tokens that the processors ask for. A new one each: some add words."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "hi", *SPECIAL]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {
        "image_token": "<image>",
        "video_token": "<video>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<image>",
        "img_patch_token": "<|IMG_PATCH|>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "img_line_break_token": "<line>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=roles,
    )


@pytest.fixture(scope="session")
def text_sizes() -> dict[str, Any]:
    """Arguments of a tiny language model's config."""
    return {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.fixture(scope="session")
def llama(text_sizes: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(**text_sizes)


@pytest.fixture(scope="session")
def documented() -> Callable[[str, str, str], None]:
    """documented(client, tower, finding): the table must say so; DINO_TOWER_WRITE_TABLE=1 writes it instead."""
    columns = ("plain", "reg4", "rope", "siglip", "clip")

    def compare(client: str, kind: str, finding: str) -> None:
        page = PAGE.read_text(encoding="utf-8")
        row = re.search(rf"^\| `{re.escape(client)}` \|[^\n]*$", page, re.M)
        assert row, f"docs/clients.md has no row for {client}"
        cells = row[0].split("|")
        place = 2 + columns.index(kind)
        if os.environ.get("DINO_TOWER_WRITE_TABLE"):
            cells[place] = f" {finding} "
            PAGE.write_text(page.replace(row[0], "|".join(cells)), encoding="utf-8")
        else:
            assert cells[place].strip() == finding, f"docs/clients.md: {client} on {kind}"

    return compare
