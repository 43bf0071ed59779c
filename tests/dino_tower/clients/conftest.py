"""Five tiny towers on disk, pictures, a tokenizer and a language model, and the table in docs/clients.md."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast
from vlm_parts import SPECIAL, word_tokenizer

from dino_tower.architectures import build
from dino_tower.export.writing import export_tower
from dino_tower.images import processor_for
from dino_tower.tower import Tower, load_tower

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
PATCH, SIDE = 16, 64  # a grid of 4 x 4
SMALL = {"width": 32, "depth": 4, "heads": 2}


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


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One that knows the special tokens that processors ask for. A new one each: some add words."""
    return word_tokenizer(*SPECIAL, special=True)


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
