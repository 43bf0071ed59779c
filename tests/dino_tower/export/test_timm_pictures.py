"""Pictures prepared by timm from an exported or converted directory, and by the tower itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor

from dino_tower import load_tower
from dino_tower.checkpoint import read_json
from dino_tower.convert.conversion import convert_weights
from dino_tower.images import processor_for

MakeRun = Callable[[str], Path]


@pytest.mark.parametrize("side", [48, 96, 224])
def test_timm_prepares_pictures_as_the_tower_does(make_run: MakeRun, tmp_path: Path, side: int) -> None:
    """A crop_pct of 0.875 once stood for every size: timm resized 48 to 54, 96 to 109, this tower to 55 and 110."""
    tower = load_tower(f"{make_run('vits8')}@student")
    tower.model.save_pretrained(tmp_path / "in")  # its position table is of 32 pixels, whatever the processor cuts
    processor_for(side, 8).save_pretrained(tmp_path / "in")
    convert_weights(tmp_path / "in", tmp_path / "out", "timm")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    picture = noise.resize((260, 260), Image.Resampling.BICUBIC)
    ours = load_tower(tmp_path / "in").pixels([picture])
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(picture)[None]
    assert torch.equal(load_tower(f"timm:{tmp_path / 'out'}").pixels([picture]), theirs)
    assert theirs.shape == ours.shape
    if side == 48:  # timm's cut from the edge 55 would be off by a whole pixel
        shifted = timm.data.create_transform((3, 48, 48), interpolation="bicubic", crop_pct=48 / 55.5)(picture)
        assert (theirs - ours).abs().mean() < (shifted - ours).abs().mean()
    else:
        assert (theirs - ours).abs().max() <= 2.01 / 255 / 0.224  # two levels of 8 bits: both round in between


def test_a_conversion_from_timm_keeps_its_resize_and_crop(make_run: MakeRun, tmp_path: Path) -> None:
    """The crop_pct, input_size and interpolation in timm's config were once dropped for those of ImageNet at 0.875."""
    tower = load_tower(f"{make_run('vits8')}@student")
    tower.model.save_pretrained(tmp_path / "in")
    tower.processor.save_pretrained(tmp_path / "in")
    convert_weights(tmp_path / "in", tmp_path / "timm", "timm")
    file = tmp_path / "timm" / "config.json"
    config = read_json(file)
    config["pretrained_cfg"] |= {"input_size": [3, 40, 40], "crop_pct": 0.9, "interpolation": "bilinear"}
    file.write_text(json.dumps(config))
    convert_weights(tmp_path / "timm", tmp_path / "native", "native")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "native")
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (44, 40)
    assert processor.resample == Image.Resampling.BILINEAR
    convert_weights(tmp_path / "timm", tmp_path / "again", "timm")
    data = read_json(tmp_path / "again" / "config.json")["pretrained_cfg"]
    assert int(40 / data["crop_pct"]) == 44
    assert (data["input_size"], data["interpolation"]) == ([3, 40, 40], "bilinear")
