"""What a run starts from: the network says at first what the start said, pixels included, or one line says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel

from dino_tower import load_tower
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.pretrain.config import read_config
from dino_tower.pretrain.loading.pixels import mean_and_std
from dino_tower.pretrain.network.networks import make_backbone
from dino_tower.pretrain.objectives.distil import towers

STILL = ("--steps", "1", "--optim.base-lr", "0", "--optim.min-lr", "0", "--teacher.momentum", "1")
SMALL = ("--model.width", "32", "--model.depth", "2", "--crops.global-size", "32", "--crops.local-size", "16")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """As public CLIP weights lie on the Hub: both towers, quick_gelu, an epsilon and pixels of their own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    text = {**sizes, "vocab_size": 100, "max_position_embeddings": 10}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8})).save_pretrained(
        tmp_path / "clip"
    )
    processor_for(32, 8, MEAN, STD).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_a_start_with_other_heads_is_refused(pretrain) -> None:
    """Names and shapes fit, and the network was another one: nothing was said, and the tower was wrecked."""
    first = pretrain("first", "--steps", "1", "--model.heads", "4")
    with pytest.raises(ConfigError, match=r"has 4 attention heads, not 2: set --model\.heads 4"):
        pretrain("second", *STILL, "--init-from", str(first))
    assert not (first.parent / "second").exists()


def test_a_layerscale_is_not_frozen_unsaid(pretrain) -> None:
    first = pretrain("first", "--steps", "1", "--model.layerscale", "0.5")
    with pytest.raises(ConfigError, match=r"has a LayerScale.*set --model\.layerscale 1e-5"):
        pretrain("second", *STILL, "--init-from", str(first), "--model.layerscale", "1")


def test_public_clip_weights_say_what_they_said(pretrain, clip: Path, capsys) -> None:
    """Its activation, its epsilon and its pixels come along, into the run and into what the run resumes from."""
    flags = ("--arch", "vits8_clip", "--model.drop-path", "0", "--init-from", str(clip), *STILL)
    run = pretrain("run", *flags)
    assert "pixels as it knows them, mean 0.4 0.5 0.6 and std 0.2 0.25 0.3" in capsys.readouterr().out
    tower, start = load_tower(run), CLIPModel.from_pretrained(clip).eval().vision_model
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(tower.model(x).last_hidden_state, start(x).last_hidden_state, atol=1e-6)
    assert tower.model.config.hidden_act == "quick_gelu" and tower.model.config.layer_norm_eps == 1e-5
    assert np.allclose(tower.processor.image_mean, MEAN) and np.allclose(tower.processor.image_std, STD)
    pretrain("other", *flags, "--pixels.mean", "0.5", "0.5", "0.5", "--pixels.std", "0.5", "0.5", "0.5")
    assert f"pixels: {clip} knows them by mean 0.4 0.5 0.6" in capsys.readouterr().out


def test_the_pixels_of_a_run_stay_when_its_start_has_gone(clip: Path, tmp_path: Path) -> None:
    """A second stage does not measure anew; a run that goes on asks its own checkpoint."""
    words = ["--arch", "vits8_clip", "--model.drop-path", "0", *SMALL, "--data", "scenes", "--output", "x"]
    config = read_config([*words, "--model.heads", "2", "--init-from", str(clip)])
    assert make_backbone(config).config.hidden_act == "quick_gelu"
    checkpoint = tmp_path / "step-1"
    shutil.copytree(clip, checkpoint / "student")
    shutil.rmtree(clip)
    mean, std = mean_and_std(config, None, checkpoint)  # type: ignore[arg-type]
    assert np.allclose(mean, MEAN) and np.allclose(std, STD)


def test_a_frozen_teacher_is_the_same_one_for_all_of_a_run(pretrain) -> None:
    """`RUN@teacher` is the newest checkpoint at each start: trained on meanwhile, it taught a resumed run otherwise."""
    big = pretrain("big", "--steps", "1", "--teacher.momentum", "0")
    flags = ("--objective", "distil", "--distil.teachers", f"{big}@teacher", "--checkpoint-every", "1")
    run = pretrain("run", *flags, "--steps", "2")
    shutil.rmtree(run / "checkpoints/step-2")
    taught = json.loads((run / "checkpoints/step-1/state.json").read_text())["teachers"]["distil"]
    other = pretrain("other", "--steps", "1", "--seed", "5")
    shutil.rmtree(big)
    shutil.copytree(other, big)
    towers.cache_clear()  # as in a process of its own
    with pytest.raises(ConfigError, match=r"the weights of .*big@teacher are not those that the run has learned from"):
        pretrain("run", *flags, "--steps", "2", "--resume")
    third = pretrain("third", *flags, *STILL, "--init-from", str(run))
    before = load_file(run / "checkpoints/step-1/heads.safetensors")
    after = load_file(third / "checkpoints/step-1/heads.safetensors")
    key = "student.distil.0.cls.1.weight"  # of another teacher: new
    assert taught and not torch.equal(before[key], after[key])
