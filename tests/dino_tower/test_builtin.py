"""The tower in the box: small enough to travel, honest about itself, and better than the same network untrained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dino_tower import demo, load_tower
from dino_tower.errors import ConfigError
from dino_tower.finding import BUILTIN
from dino_tower.knn import paired_interval

FOLDER = BUILTIN / "scenes"


def test_it_beats_its_untrained_twin_and_raw_pixels_by_more_than_the_interval() -> None:
    trained, untrained = load_tower("builtin:scenes"), load_tower("random:builtin:scenes")
    found = demo.compare(trained, untrained, scenes=300)
    for floor in (demo.UNTRAINED, demo.PIXELS):
        _, low, _ = paired_interval(found[demo.TRAINED].right[5], found[floor].right[5])
        assert low > 0.05, floor


def test_it_is_small_and_a_plain_transformers_directory() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 4 * 2**20
    assert json.loads((FOLDER / "config.json").read_text())["architectures"] == ["Dinov2Model"]
    assert json.loads((FOLDER / "preprocessor_config.json").read_text())["crop_size"] == {"height": 48, "width": 48}


def test_its_card_says_what_was_measured() -> None:
    card = (FOLDER / "README.md").read_text()
    for words in ("k-NN accuracy, 2,000 test scenes", "random init", "raw 16x16 pixels", "attention masks", "IoU"):
        assert words in card


def test_a_copy_of_it_loads_from_anywhere(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "tower")
    images = [demo.PIL.Image.new("RGB", (60, 50), "teal")]
    assert (load_tower(tmp_path / "tower")(images).cls == load_tower("builtin:scenes")(images).cls).all()


def test_a_misspelt_built_in_tower_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match="builtin:scenes"):
        load_tower("builtin:scene")
