"""Projectors: the number of tokens is known beforehand, and a token knows where it comes from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from dino_tower.adapters.projectors import PROJECTORS, Projector, build_projector, sines
from dino_tower.errors import ConfigError

GRID, WIDTH, OUT = (4, 6), 12, 16
SMALL: dict[str, dict[str, int]] = {
    "linear": {},
    "mlp": {},
    "pixel-shuffle": {"factor": 2},
    "c-abstractor": {"tokens": 4, "depth": 1, "hidden": 16},
    "resampler": {"tokens": 5, "heads": 2},
}
TOKENS = {"linear": 24, "mlp": 24, "pixel-shuffle": 6, "c-abstractor": 4, "resampler": 5}
LOCAL = ("linear", "mlp", "pixel-shuffle")


def projector(name: str, **options: int) -> Projector:
    torch.manual_seed(0)
    return build_projector(name, GRID, WIDTH, OUT, **{**SMALL[name], **options}).eval()


def patches() -> Tensor:
    return torch.randn(2, *GRID, WIDTH, generator=torch.Generator().manual_seed(1))


def test_every_projector_is_tried_here() -> None:
    assert set(PROJECTORS) == set(SMALL) == set(TOKENS)


@pytest.mark.parametrize("name", PROJECTORS)
def test_tokens_are_known_beforehand_and_every_weight_learns(name: str) -> None:
    module = projector(name)
    out = module(patches())
    assert module.tokens == TOKENS[name]
    assert out.shape == (2, module.tokens, OUT)
    assert torch.equal(out, module(patches().flatten(1, 2)))
    assert not torch.equal(out[0], out[1])
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert [key for key, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", PROJECTORS)
def test_order_of_pictures_and_place_of_patches(name: str) -> None:
    """Pictures do not mix. A token of the local ones moves when one of its own patches does, and no other."""
    module = projector(name)
    before = patches()
    after = before.clone()
    after[0, 2, 3] += 1
    moved = (module(after) - module(before)).abs().amax(-1) > 1e-6
    assert not moved[1].any()
    if name in LOCAL:
        place = {24: 2 * 6 + 3, 6: 1 * 3 + 1}[module.tokens]
        assert moved[0].nonzero().flatten().tolist() == [place]
    else:
        assert moved[0].any()


@pytest.mark.parametrize("name", ["c-abstractor", "resampler"])
def test_shuffled_patches_are_another_picture(name: str) -> None:
    """Both know where a patch is: the resampler would be blind to it without the sines of its keys."""
    module = projector(name)
    turned = patches().flip(2)
    assert not torch.allclose(module(patches()), module(turned), atol=1e-4)


def test_mlp_is_llavas_own() -> None:
    ours = projector("mlp")
    vision = {"model_type": "dinov2", "hidden_size": WIDTH}
    text = {"model_type": "llama", "hidden_size": OUT, "num_attention_heads": 2}
    config = LlavaConfig(vision_config=vision, text_config=text)
    theirs = LlavaMultiModalProjector(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    flat = patches().flatten(1, 2)
    assert torch.allclose(theirs(flat), ours(flat), atol=1e-6)


def test_pixel_shuffle_keeps_every_number() -> None:
    """Four patches side by side in reading order: with the norm and MLP taken away, only the order is new."""
    module: Any = projector("pixel-shuffle")
    module.norm = module.linear_1 = module.act = module.linear_2 = torch.nn.Identity()
    merged = module(patches())
    grid = patches()
    assert torch.equal(merged[1, 4], torch.cat([grid[1, y, x] for y in (2, 3) for x in (2, 3)]))


def test_sines_tell_every_place_apart() -> None:
    places = sines((5, 7), 16)
    assert places.shape == (35, 16)
    assert (torch.cdist(places, places) + torch.eye(35) * 9).min() > 0.1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("perceiver", {}, "no projector 'perceiver'; choices: c-abstractor, linear, mlp, pixel-shuffle, resampler"),
        ("mlp", {"tokens": 4}, "projector 'mlp' has no options, and 'tokens' was given"),
        ("resampler", {"token": 4}, "projector 'resampler': no option 'token'; did you mean 'tokens'?"),
        ("resampler", {"tokens": 0}, "projector 'resampler': tokens 0; it must be a whole number, 1 or more"),
        ("resampler", {"heads": 5}, "the resampler's 5 heads do not divide the language model's width 16"),
        ("pixel-shuffle", {"factor": 4}, "merges 4 x 4 patches, and the grid is 4 x 6"),
        ("c-abstractor", {"tokens": 10}, "makes a square of tokens, and 10 is none; 9 is"),
        ("c-abstractor", {"tokens": 25}, "cannot make 5 x 5 tokens from 4 x 6 patches"),
    ],
)
def test_mistakes(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_projector(name, GRID, WIDTH, OUT, **options)
    assert message in str(error.value)


def test_another_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="a projector for 4 x 6 patches of width 12 got 25 of 12"):
        projector("linear")(torch.zeros(1, 5, 5, WIDTH))
