"""VLM classes that take no foreign tower: what they do with one, and that we say so first."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from dino_tower import check_vlm
from dino_tower.errors import ConfigError
from dino_tower.tower import Tower

# why; arguments of the config; shape of the pixels; image tokens; more inputs
REFUSED: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, dict[str, torch.Tensor]]] = {
    "Idefics3": ("its own vision transformer", {"image_token_id": 5}, (1, 1, 3, 64, 64), 4, {}),
    "SmolVLM": ("its own vision transformer", {"image_token_id": 5}, (1, 1, 3, 64, 64), 4, {}),
    "Mistral3": (
        "as a Pixtral",
        {"image_token_index": 5, "vision_feature_layer": -1},
        (1, 3, 64, 64),
        4,
        {"image_sizes": torch.tensor([[64, 64]])},
    ),
    "PerceptionLM": ("timm Perception Encoder", {"image_token_id": 5}, (1, 1, 3, 64, 64), 16, {}),
    "FastVlm": ("FastViT", {"image_token_index": 5}, (1, 3, 64, 64), 16, {}),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "rope", "siglip"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_vlm_that_takes_no_foreign_tower_is_refused(
    name: str, kind: str, towers: dict[str, Tower], text_sizes: dict[str, Any]
) -> None:
    """With a DINOv3 or SigLIP config, Idefics3 and SmolVLM "work": with a vision transformer of their own inside."""
    why, arguments, pixels, tokens, more = REFUSED[name]
    whole = f"{name}ForConditionalGeneration"
    with pytest.raises(ConfigError, match=why):
        check_vlm(whole, towers[kind])
    config = getattr(transformers, f"{name}Config")(
        vision_config=copy.deepcopy(towers[kind].model.config),
        text_config=transformers.LlamaConfig(**text_sizes),
        **arguments,
    )
    inputs = {"input_ids": torch.full((1, tokens), 5), "pixel_values": torch.rand(*pixels), **more}
    if name in ("Idefics3", "SmolVLM") and kind != "plain":
        model = getattr(transformers, whole)(config).eval()
        model(**inputs)
        assert type(model.model.vision_model).__name__ == f"{name}VisionTransformer"
        return
    with pytest.raises((AttributeError, RuntimeError)):
        getattr(transformers, whole)(config).eval()(**inputs)
