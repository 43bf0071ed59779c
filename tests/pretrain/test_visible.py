"""An encoder that is handed some patches only: the same network, less work, and nothing of the others gets in."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dino_tower.architectures import build
from dino_tower.errors import ConfigError
from dino_tower.pretrain.network.lean_blocks import make_lean
from dino_tower.pretrain.network.visible import visible_tokens
from dino_tower.tokens import tokens

CLASSES = ("vitt8", "vitt8_reg4", "vitt8_rope", "vitt8_siglip", "vitt8_clip")
FRONT = {"vitt8": 1, "vitt8_reg4": 5, "vitt8_rope": 1, "vitt8_siglip": 0, "vitt8_clip": 1}
SIDE = 4


def backbone(arch: str, **settings: object):
    torch.manual_seed(0)
    made = build(arch, image_size=8 * SIDE, width=16, depth=2, heads=2, **settings)  # type: ignore[arg-type]
    make_lean(made)
    return made


def pictures(count: int = 3, size: int = 8 * SIDE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", CLASSES)
@pytest.mark.parametrize("size", [32, 48])
def test_with_all_patches_it_is_the_whole_forward(arch: str, size: int) -> None:
    """In whatever order each picture's patches come, and at a size for which positions are interpolated."""
    model, x = backbone(arch), pictures(size=size)
    g = torch.Generator().manual_seed(2)
    order = torch.stack([torch.randperm((size // 8) ** 2, generator=g) for _ in x])
    with torch.no_grad():
        want = tokens(model, x)
        front, patches = visible_tokens(model, x, order)
    assert torch.allclose(patches, want.patches.flatten(1, 2).take_along_dim(order[..., None], 1), atol=1e-5)
    assert front.shape == (3, FRONT[arch], 16)
    assert want.cls is None or torch.allclose(front[:, 0], want.cls, atol=1e-5)


@pytest.mark.parametrize("arch", CLASSES)
def test_what_is_left_out_leaves_no_trace(arch: str) -> None:
    model, x = backbone(arch), pictures()
    keep = torch.tensor([[0, 5, 6], [1, 2, 15], [8, 9, 3]])
    shown = torch.zeros(3, SIDE**2, dtype=torch.bool).scatter(1, keep, True).view(3, 1, SIDE, SIDE)
    other = torch.where(shown.repeat_interleave(8, 2).repeat_interleave(8, 3), x, pictures(6)[3:])
    with torch.no_grad():
        a, b = visible_tokens(model, x, keep), visible_tokens(model, other, keep)
    assert all(torch.equal(one, same) for one, same in zip(a, b, strict=True))
    assert (visible_tokens(model, x, keep.flip(0))[1] - a[1]).abs().max() > 1e-3  # and it does matter which are kept


@pytest.mark.parametrize("arch", CLASSES)
def test_every_parameter_learns_from_the_patches(arch: str) -> None:
    """DDP waits for a gradient of each, of class tokens and registers too."""
    model = backbone(arch)
    visible_tokens(model, pictures(), torch.tensor([[0, 5], [1, 2], [8, 9]]))[1].square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_it_costs_what_the_kept_patches_cost() -> None:
    model, x = build("vitt8", image_size=96, width=32, depth=4, heads=2), pictures(2, 96)
    counts = []
    for kept in (144, 36):
        keep = torch.arange(kept).expand(2, -1)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            visible_tokens(model, x, keep)
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.35 * counts[0]


def test_a_convolutional_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="resnet cannot be run on some patches only; choices: dinov2"):
        visible_tokens(build("resnet18", image_size=32), pictures(), torch.tensor([[0], [0], [0]]))
