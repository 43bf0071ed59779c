"""Depth, segmentation and detection models on our towers' Backbone classes.

The features inside are compared with the tower's outside bit for bit: the code is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    BertConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DetrConfig,
    DetrForObjectDetection,
    DPTConfig,
    DPTForDepthEstimation,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    PreTrainedModel,
    PromptDepthAnythingConfig,
    PromptDepthAnythingForDepthEstimation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)

from dino_tower import check_vlm
from dino_tower.errors import ConfigError
from dino_tower.tower import Tower
from dino_tower.vlm.dense import dense_settings_for
from dino_tower.vlm.facts import DENSE

KINDS = ("plain", "reg4", "rope", "siglip", "clip")
HEIGHT, WIDTH = 96, 64  # not square: a transposed map would show
GRID = (6, 4)
DECODER: dict[str, Any] = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 3,
}
MASKS: dict[str, Any] = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "num_queries": 3,
}
NECK: dict[str, Any] = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}


def depth_anything(backbone: Any, **config: Any) -> PreTrainedModel:
    sizes = {**NECK, "reassemble_hidden_size": 32, "head_hidden_size": 4, **config}
    return DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **sizes))


def prompt_depth_anything(backbone: Any, **config: Any) -> PreTrainedModel:
    sizes = {**NECK, "reassemble_hidden_size": 32, "head_hidden_size": 4, **config}
    return PromptDepthAnythingForDepthEstimation(PromptDepthAnythingConfig(backbone_config=backbone, **sizes))


def dpt(backbone: Any) -> PreTrainedModel:
    return DPTForDepthEstimation(DPTConfig(backbone_config=backbone, **NECK))


def zoedepth(backbone: Any) -> PreTrainedModel:
    config = ZoeDepthConfig(
        backbone_config=backbone,
        **NECK,
        bottleneck_features=8,
        num_attractors=[2, 2, 2, 1],
        bin_embedding_dim=8,
        num_relative_features=4,
        bin_configurations=[{"n_bins": 4, "min_depth": 0.001, "max_depth": 10.0}],
    )
    return ZoeDepthForDepthEstimation(config)


def upernet(backbone: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 8, "pool_scales": [1, 2], "auxiliary_channels": 8, "num_labels": 3}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **sizes))


def maskformer(backbone: Any) -> PreTrainedModel:
    config = MaskFormerConfig(
        backbone_config=backbone,
        fpn_feature_size=32,
        mask_feature_size=32,
        decoder_config=DetrConfig(d_model=32, **DECODER),
    )
    return MaskFormerForInstanceSegmentation(config)


def mask2former(backbone: Any) -> PreTrainedModel:
    sizes = {**MASKS, "feature_size": 32, "mask_feature_size": 32}
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, **sizes))


def oneformer(backbone: Any) -> PreTrainedModel:
    text = {"width": 32, "context_length": 4, "num_layers": 1, "vocab_size": 32, "n_ctx": 2}
    sizes = {**MASKS, "conv_dim": 32, "mask_dim": 32, "query_dec_layers": 1, "task_seq_len": 4}
    config = OneFormerConfig(backbone_config=backbone, **sizes, **{f"text_encoder_{k}": v for k, v in text.items()})
    return OneFormerForUniversalSegmentation(config)


def detr(backbone: Any) -> PreTrainedModel:
    return DetrForObjectDetection(DetrConfig(backbone_config=backbone, d_model=32, **DECODER))


def grounding_dino(backbone: Any) -> PreTrainedModel:
    text = BertConfig(
        vocab_size=2000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    # 64 wide: its GroupNorm of 32 groups meets maps of 1 x 1 here
    config = GroundingDinoConfig(backbone_config=backbone, text_config=text, d_model=64, max_text_len=16, **DECODER)
    return GroundingDinoForObjectDetection(config)


TEXT = torch.tensor([[101, 4, 1012, 102]])  # [CLS] word . [SEP]
CLIENTS: dict[str, tuple[Callable[..., PreTrainedModel], str, dict[str, Tensor]]] = {
    "DepthAnythingForDepthEstimation": (depth_anything, "predicted_depth", {}),
    "PromptDepthAnythingForDepthEstimation": (
        prompt_depth_anything,
        "predicted_depth",
        {"prompt_depth": torch.arange(64.0).reshape(1, 1, 8, 8)},
    ),
    "DPTForDepthEstimation": (dpt, "predicted_depth", {}),
    "ZoeDepthForDepthEstimation": (zoedepth, "predicted_depth", {}),
    "UperNetForSemanticSegmentation": (upernet, "logits", {}),
    "MaskFormerForInstanceSegmentation": (maskformer, "masks_queries_logits", {}),
    "Mask2FormerForUniversalSegmentation": (mask2former, "masks_queries_logits", {}),
    "OneFormerForUniversalSegmentation": (oneformer, "masks_queries_logits", {"task_inputs": torch.ones(1, 4)}),
    "DetrForObjectDetection": (detr, "pred_boxes", {}),
    "GroundingDinoForObjectDetection": (grounding_dino, "pred_boxes", {"input_ids": TEXT}),
}


@torch.no_grad()
def run(name: str, tower: Tower, backbone: dict[str, Any], config: dict[str, Any]) -> PreTrainedModel:
    """Build it around the tower's saved config, load its weights, predict. Fails as transformers fails."""
    build, output, inputs = CLIENTS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(AutoConfig.from_pretrained(tower.name, **backbone), **config).eval()
        for p in model.parameters():
            if p.ndim > 1:  # fresh heads are so small that a picture hardly shows
                torch.nn.init.normal_(p, std=0.1)
        pictures = torch.randn(2, 1, 3, HEIGHT, WIDTH)
    inside = model.get_submodule(DENSE[name].module)
    inside.load_state_dict(tower.model.state_dict(), strict=True)
    seen: dict[str, Any] = {}
    inside.register_forward_hook(lambda _, args, out: seen.update(maps=out.feature_maps))
    other, one = (getattr(model(pixels, **inputs), output) for pixels in pictures.flip(0))
    assert bool(torch.isfinite(one).all())
    assert not torch.equal(one, other), "another picture, the same prediction"
    if output == "predicted_depth":
        assert one.shape == (1, HEIGHT, WIDTH)
    last = seen["maps"][-1]
    outside = tower.model(pictures[0]).last_hidden_state
    patches = outside[:, -GRID[0] * GRID[1] :].transpose(1, 2).unflatten(2, GRID)
    assert torch.equal(last, patches if last.ndim == 4 else outside)
    return model


def steps(name: str, tower: Tower) -> list[tuple[str, dict[str, Any]]]:
    """Backbone settings, from none to all, each under the name of its cell."""
    count, last = DENSE[name].levels, tower.model.config.num_hidden_layers
    levels = {"out_indices": list(range(last - count + 1, last + 1))}
    return [
        ("works", {}),
        ("works with `out_indices`", levels),
        ("works with `out_indices` and `reshape_hidden_states=False`", {**levels, "reshape_hidden_states": False}),
    ]


def reason(error: ConfigError) -> str:
    """The cell of a refusal."""
    return "refused: " + next(word for word in ("Backbone class", "registers", "class token") if word in str(error))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLIENTS)
def test_client(
    name: str, kind: str, towers: dict[str, Tower], documented: Callable[[str, str, str], None], tmp_path: Path
) -> None:
    tower = towers[kind]
    try:
        wanted = dense_settings_for(name, tower)
    except ConfigError as error:
        with pytest.raises(ConfigError, match=name):
            check_vlm(name, tower)
        config = {"patch_size": tower.patch} if DENSE[name].patch_size else {}
        for _, backbone in steps(name, tower):
            with pytest.raises((RuntimeError, ValueError, IndexError)) as theirs:
                run(name, tower, backbone, config)
            assert not isinstance(theirs.value, ConfigError)
        documented(name, kind, reason(error))
        return
    model = run(name, tower, wanted.backbone, wanted.config)
    assert check_vlm(model, tower) == check_vlm(name, tower) == []
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert check_vlm(again, tower) == []  # the weights too: they have other names on disk
    for cell, backbone in steps(name, tower):
        try:
            run(name, tower, backbone, wanted.config)
        except (RuntimeError, ValueError, IndexError):
            with pytest.raises(ConfigError, match=r"set (out_indices|reshape_hidden_states)="):
                config = type(model.config)(backbone_config=AutoConfig.from_pretrained(tower.name, **backbone))
                config.patch_size = tower.patch
                check_vlm(config, tower)
            continue
        documented(name, kind, cell)
        return
    raise AssertionError("no step works")
