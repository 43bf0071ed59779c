"""What DINOv2's recipe asks of a backbone beyond DINO's."""

from __future__ import annotations

import torch

from dino_tower.pretrain.config import load_preset
from dino_tower.pretrain.network.networks import make_backbone
from dino_tower.pretrain.network.student_teacher import Network, make_teacher
from dino_tower.pretrain.objectives.settings import describe
from dino_tower.pretrain.settings import Config, CropsConfig, ModelConfig

WIDTH, DEPTH = 32, 4


def test_tokens_scales_gates_and_paths_of_the_long_run() -> None:
    preset = load_preset("dinov2_vitl14_reg4")
    model = ModelConfig(**{**vars(preset.model), "width": WIDTH, "depth": DEPTH, "heads": 2})
    crops = CropsConfig(global_size=28, local_size=14)
    torch.manual_seed(0)
    backbone = make_backbone(Config(arch=preset.arch, objective=preset.objective, model=model, crops=crops))
    embeddings = backbone.embeddings
    for tokens in (embeddings.cls_token, embeddings.register_tokens):
        assert 0 < tokens.abs().max() < 1e-5
    assert 0.015 < embeddings.position_embeddings.std() < 0.025
    assert embeddings.mask_token.requires_grad and not embeddings.mask_token.any()
    for block in backbone.encoder.layer:
        assert block.mlp.gate_proj.out_features == (int(4 * WIDTH * 2 / 3) + 7) // 8 * 8 == 88
        assert (block.layer_scale1.lambda1 == 1e-5).all() and block.layer_scale1.lambda1.requires_grad
        assert abs(block.drop_path.drop_prob - 0.4) < 1e-6  # uniform; DINO's rises from block to block
    assert backbone.config.drop_path_rate == 0 and backbone.config.use_swiglu_ffn
    teacher = make_teacher(Network(backbone))
    assert all(block.drop_path.drop_prob == 0 for block in teacher.backbone.encoder.layer)


def test_without_masks_the_mask_token_is_not_trained() -> None:
    """Nothing would reach it: weight decay alone would move it, and DDP wait for its gradient."""
    for objective, trained in (("dino", False), ("ibot", True)):
        model = ModelConfig(width=WIDTH, depth=1, heads=2)
        backbone = make_backbone(Config(objective=objective, model=model, crops=CropsConfig(global_size=32, locals=0)))
        assert backbone.embeddings.mask_token.requires_grad == trained


def test_presets_name_the_published_sums() -> None:
    assert describe(load_preset("dino_vits16")) == "dino"
    assert describe(load_preset("ibot_vits16")) == "dino + ibot"
    assert describe(load_preset("dinov2_vitl14")) == "dino + ibot + 0.1 koleo"
