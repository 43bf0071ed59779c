"""Lean blocks give what the blocks of transformers give, value and gradients, from the same random draws."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Model, PreTrainedModel

from dino_tower.architectures import build
from dino_tower.pretrain.network.lean_blocks import LEAN, class_tokens, make_lean
from dino_tower.tokens import tokens

GRID = 4


def pair(arch: str = "vitt8", **settings) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A plain backbone and its lean twin."""
    torch.manual_seed(0)
    plain = build(arch, image_size=8 * GRID, width=32, depth=3, heads=2, **settings).train()
    lean = copy.deepcopy(plain)
    make_lean(lean)
    return plain, lean


def pixels(batch: int = 12) -> Tensor:
    return torch.randn(batch, 3, 8 * GRID, 8 * GRID, generator=torch.Generator().manual_seed(1))


def gradients(model: PreTrainedModel, found: Tensor) -> dict[str, Tensor]:
    wanted = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    (found.float() * wanted).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(plain: PreTrainedModel, lean: PreTrainedModel, want: Tensor, got: Tensor) -> None:
    """To fp32 rounding. The gradient of a key's bias is zero but for rounding, and is held to the others' size."""
    assert (got - want).abs().max() <= 2e-6 * want.abs().max()
    mine, theirs = gradients(lean, got), gradients(plain, want)
    assert mine.keys() == theirs.keys()
    largest = max(g.abs().max() for g in theirs.values())
    for name, gradient in theirs.items():
        size = largest if name.endswith("k_proj.bias") else gradient.abs().max()
        assert (mine[name] - gradient).abs().max() <= 2e-5 * size, name


@pytest.mark.parametrize("arch", ["vitt8", "vitt8_reg4"])
@pytest.mark.parametrize("layerscale", [1.0, 0.1])
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_all_tokens_and_class_tokens(arch: str, layerscale: float, drop_path: float, attention: str) -> None:
    plain, lean = pair(arch, layerscale=layerscale, drop_path=drop_path)
    for model in (plain, lean):
        model.set_attn_implementation(attention)
    for of in (lambda model: tokens(model, pixels()).patches, None):
        torch.manual_seed(3)
        want = of(plain) if of else tokens(plain, pixels()).pooled
        torch.manual_seed(3)
        got = of(lean) if of else class_tokens(lean, pixels())
        assert_same(plain, lean, want, got)


@pytest.mark.parametrize("seed", range(4))
def test_one_picture_whose_paths_are_all_dropped_or_all_kept(seed: int) -> None:
    """With nobody left to compute a branch for, its weights still get a gradient: DDP waits for it."""
    plain, lean = pair(drop_path=0.9)
    torch.manual_seed(seed)
    want = tokens(plain, pixels(1)).pooled
    torch.manual_seed(seed)
    assert_same(plain, lean, want, class_tokens(lean, pixels(1)))


def test_masks_reach_the_model() -> None:
    plain, lean = pair(mask_token=True)
    masks = torch.rand(12, GRID, GRID, generator=torch.Generator().manual_seed(4)) < 0.5
    assert_same(plain, lean, tokens(plain, pixels(), masks).pooled, class_tokens(lean, pixels(), masks))


def test_swiglu() -> None:
    plain, lean = pair(swiglu=True, drop_path=0.3)
    torch.manual_seed(3)
    want = tokens(plain, pixels()).pooled
    torch.manual_seed(3)
    assert_same(plain, lean, want, class_tokens(lean, pixels()))


def test_gradient_checkpointing_replays_the_same_paths() -> None:
    plain, lean = pair(drop_path=0.4)
    lean.activation_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(3)
    want = tokens(plain, pixels()).pooled
    torch.manual_seed(3)
    assert_same(plain, lean, want, class_tokens(lean, pixels()))


def test_bf16_autocast_is_near() -> None:
    plain, lean = pair(drop_path=0.4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(3)
        want = tokens(plain, pixels()).pooled
        torch.manual_seed(3)
        got = class_tokens(lean, pixels())
    assert (got - want).abs().max() <= 0.05 * want.abs().max()
    gradients(lean, got)


def test_work_that_nobody_reads_is_not_done() -> None:
    plain, lean = pair()
    done = {}
    for name, run in {"all": lambda: tokens(plain, pixels()), "class": lambda: class_tokens(lean, pixels())}.items():
        with FlopCounterMode(display=False) as counter:
            run()
        done[name] = counter.get_total_flops()
    assert done["class"] < 0.8 * done["all"]  # of three blocks the last does two twelfths


def test_a_lean_tower_is_saved_as_any_other(tmp_path) -> None:
    _, lean = pair()
    lean.save_pretrained(tmp_path)
    loaded = Dinov2Model.from_pretrained(tmp_path)
    assert type(loaded.encoder.layer[0]) in LEAN
    assert torch.equal(tokens(loaded.eval(), pixels()).patches, tokens(lean.eval(), pixels()).patches)


@pytest.mark.parametrize("arch", ["vitt8_rope", "vitt8_siglip"])
def test_other_classes_stay_as_they_are(arch: str) -> None:
    plain, lean = pair(arch)
    assert [type(m) for m in plain.modules()] == [type(m) for m in lean.modules()]
    assert torch.equal(tokens(plain, pixels()).pooled, class_tokens(lean, pixels()))
