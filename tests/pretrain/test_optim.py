"""Groups, clipping and LARS against what the recipe says."""

from __future__ import annotations

import torch

from dino_tower.architectures import build
from dino_tower.pretrain.algorithms.heads import DinoHead
from dino_tower.pretrain.network.student_teacher import Network
from dino_tower.pretrain.optim import (
    LARS,
    clip_global,
    clip_per_module,
    clip_per_parameter,
    groups_of,
    parameter_groups,
    set_rates,
)
from dino_tower.pretrain.settings import OptimConfig


def test_tokens_and_positions_are_decayed_biases_and_norms_are_not() -> None:
    model = build("vits16", image_size=32, width=32, depth=1, heads=2)
    decay, rest = parameter_groups([model, DinoHead(32, 16, 16, 8, norm_last_layer=False)])
    names = {id(p): n for m in (model, DinoHead(32, 16, 16, 8)) for n, p in m.named_parameters()}
    decayed = {names[id(p)] for p in decay["params"] if id(p) in names}
    assert {"embeddings.cls_token", "embeddings.position_embeddings"} <= decayed
    assert all(p.ndim > 1 for p in decay["params"]) and all(p.ndim == 1 for p in rest["params"])
    optimizer = torch.optim.AdamW([decay, rest])
    set_rates(optimizer, 0.5, 0.3)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.3), (0.5, 0.0)]


def test_the_three_parts_of_qkv_are_clipped_as_the_one_matrix_they_were() -> None:
    """Clipped one by one they left the published trajectory at the second step by 1e-4."""
    named = [(f"layer.0.attention.{k}_proj.weight", torch.nn.Parameter(torch.zeros(2))) for k in "qkvo"]
    for (_, p), value in zip(named, (3.0, 4.0, 0.0, 0.1), strict=True):
        p.grad = torch.tensor([value, 0.0])
    norm = clip_per_parameter(named, 1.0)
    grads = torch.stack([p.grad[0] for _, p in named])
    assert torch.allclose(grads, torch.tensor([0.6, 0.8, 0.0, 0.1]), atol=1e-5)
    assert torch.allclose(norm, torch.tensor(25.01).sqrt())


def test_global_clipping_scales_all_together() -> None:
    named = [(str(i), torch.nn.Parameter(torch.zeros(1))) for i in range(2)]
    for (_, p), value in zip(named, (3.0, 4.0), strict=True):
        p.grad = torch.tensor([value])
    assert clip_global(named, 1.0) == 5
    assert torch.allclose(torch.stack([p.grad for _, p in named]).flatten(), torch.tensor([0.6, 0.8]), atol=1e-5)


def test_each_module_is_clipped_by_its_own_norm() -> None:
    named = [(name, torch.nn.Parameter(torch.zeros(1))) for name in ("backbone.a", "backbone.b.c", "head.a", "patch.a")]
    for (_, p), value in zip(named, (3.0, 4.0, 0.5, 10.0), strict=True):
        p.grad = torch.tensor([value])
    assert clip_per_module(named, 1.0) == torch.tensor([5.0, 0.5, 10.0]).norm()
    assert torch.allclose(torch.cat([p.grad for _, p in named]), torch.tensor([0.6, 0.8, 0.5, 1.0]), atol=1e-5)


def test_layers_near_the_pixels_take_smaller_steps() -> None:
    """DINOv2's rates: a decay a block, the patch embedding's on top, the full rate for norm and heads."""
    backbone = build("vits16", image_size=32, width=32, depth=2, heads=2, mask_token=True)
    network = Network(backbone, head=DinoHead(32, 16, 16, 8, norm_last_layer=False))
    groups = groups_of(network, OptimConfig(layer_decay=0.5, patch_embed_lr=0.2))
    optimizer = torch.optim.AdamW(groups)
    set_rates(optimizer, 1.0, 0.3)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rate[id(p)] for name, p in network.named_parameters() if p.requires_grad}
    embeddings = "backbone.embeddings."
    assert found[f"{embeddings}cls_token"] == found[f"{embeddings}mask_token"] == 0.125
    assert found[f"{embeddings}patch_embeddings.projection.weight"] == 0.125 * 0.2
    assert found["backbone.encoder.layer.0.mlp.fc1.weight"] == 0.25
    assert found["backbone.encoder.layer.1.mlp.fc1.bias"] == 0.5
    assert found["backbone.layernorm.weight"] == found["head.mlp.0.weight"] == found["head.last_layer.weight_g"] == 1
    slow = groups_of(network, OptimConfig(backbone_lr=0.1))
    assert [round(group["scale"], 9) for group in slow] == [0.1, 0.1, 1, 1]
    decayed = {id(p) for group in groups if group["decayed"] for p in group["params"]}
    assert all((id(p) in decayed) == (p.ndim > 1) for p in network.parameters() if p.requires_grad)


def test_lars_by_hand() -> None:
    w, b = torch.nn.Parameter(torch.tensor([[3.0, 4.0]])), torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([{"params": [w], "decayed": True}, {"params": [b], "decayed": False}], momentum=0.5, eta=0.1)
    set_rates(optimizer, 2.0, 0.1)
    want_w, want_b, mw, mb = w.detach().clone(), b.detach().clone(), torch.zeros(1, 2), torch.zeros(1)
    for _ in range(3):
        w.grad, b.grad = torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])
        update = w.grad + 0.1 * want_w
        mw = 0.5 * mw + update * 0.1 * want_w.norm() / update.norm()
        mb = 0.5 * mb + b.grad
        want_w, want_b = want_w - 2 * mw, want_b - 2 * mb
        optimizer.step()
        assert torch.allclose(w, want_w) and torch.allclose(b, want_b)
