"""Encoder-decoder and dual-encoder models and the feature pipeline around our towers; features compared bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    pipeline,
)

from dino_tower import check_vlm, image_tokens_for
from dino_tower.errors import ConfigError
from dino_tower.tower import Tower

KINDS = ("plain", "reg4", "rope", "siglip", "clip")
Documented = Callable[[str, str, str], None]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_encoder_decoder(
    kind: str, towers: dict[str, Tower], pictures: list[Image.Image], documented: Documented, tmp_path: Path
) -> None:
    """Every token of the tower is memory that the decoder may look at: class token and registers do no harm."""
    tower = towers[kind]
    text = GPT2Config(
        vocab_size=32, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(copy.deepcopy(tower.model.config), text)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = VisionEncoderDecoderModel(config).eval()
    model.encoder.load_state_dict(tower.model.state_dict(), strict=True)
    pixels = tower.pixels(pictures)
    assert isinstance(pixels, torch.Tensor)
    out = model(pixel_values=pixels, decoder_input_ids=torch.tensor([[1, 4], [1, 4]]))
    assert not torch.equal(out.logits[0], out.logits[1])
    assert torch.equal(out.encoder_last_hidden_state, tower.model(pixels).last_hidden_state)
    assert out.encoder_last_hidden_state.shape[1] == image_tokens_for(type(model), tower).image_tokens
    assert model.generate(pixels, max_new_tokens=3).shape[1] > 1
    model.save_pretrained(tmp_path)
    assert check_vlm(VisionEncoderDecoderModel.from_pretrained(tmp_path), tower) == check_vlm(model, tower) == []
    documented("VisionEncoderDecoderModel", kind, "works")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_dual_encoder(
    kind: str, towers: dict[str, Tower], pictures: list[Image.Image], documented: Documented, tmp_path: Path
) -> None:
    tower = towers[kind]
    text = BertConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        copy.deepcopy(tower.model.config), text, projection_dim=16
    )
    model = VisionTextDualEncoderModel(config).eval()
    model.vision_model.load_state_dict(tower.model.state_dict(), strict=True)
    pixels, words = tower.pixels(pictures), torch.tensor([[1, 4]])
    assert isinstance(pixels, torch.Tensor)
    if kind == "siglip":
        with pytest.raises(IndexError):
            model(input_ids=words, pixel_values=pixels)
        with pytest.raises(ConfigError, match="one pooled vector a picture, and this siglip_vision_model gives none"):
            check_vlm(model, tower)
        documented("VisionTextDualEncoderModel", kind, "refused: pooled vector")
        return
    out = model(input_ids=words, pixel_values=pixels)
    assert out.logits_per_image[0] != out.logits_per_image[1]
    cls = tower(pixels)
    assert not isinstance(cls, list)
    assert torch.equal(out.vision_model_output.pooler_output, cls.cls)
    model.save_pretrained(tmp_path)
    assert check_vlm(VisionTextDualEncoderModel.from_pretrained(tmp_path), tower) == check_vlm(model, tower) == []
    documented("VisionTextDualEncoderModel", kind, "works")


@pytest.mark.parametrize("kind", KINDS)
def test_pipeline(kind: str, towers: dict[str, Tower], pictures: list[Image.Image], documented: Documented) -> None:
    tower = towers[kind]
    extractor = pipeline("image-feature-extraction", model=tower.name)
    one, other = (extractor(picture, return_tensors=True) for picture in pictures)
    with torch.no_grad():
        outside = tower.model(tower.pixels(pictures[:1])).last_hidden_state
    assert torch.equal(one, outside)
    assert not torch.equal(one, other)
    documented('pipeline("image-feature-extraction")', kind, "works")
