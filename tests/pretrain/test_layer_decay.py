"""Layer-wise decay knows the names of every family that is trained."""

from __future__ import annotations

import pytest

from dino_tower.architectures import build
from dino_tower.pretrain.algorithms.layer_decay import layer_multiplier


@pytest.mark.parametrize("arch", ["vitt16", "vitt16_reg4", "vitt16_rope", "vitt16_clip", "vitt16_siglip"])
def test_embeddings_blocks_and_what_follows(arch: str) -> None:
    model = build(arch, image_size=32, width=16, depth=3, heads=2)
    layers = model.config.num_hidden_layers
    by_layer: dict[float, set[str]] = {}
    for name, _ in model.named_parameters():
        by_layer.setdefault(layer_multiplier(name, 0.5, layers), set()).add(name)
    assert sorted(by_layer) == [0.5**i for i in reversed(range(layers + 2))]  # every layer has parameters
    first, last = by_layer[0.5 ** (layers + 1)], by_layer[1.0]
    assert all("embed" in name or "pre_layrnorm" in name for name in first)
    assert any("patch" in name for name in first)
    assert last and all("norm" in name or name.startswith("head.") for name in last)
    sizes = {len(by_layer[0.5**i]) for i in range(1, layers + 1)}
    assert len(sizes) == 1  # each block has as many as the others


def test_a_rate_of_one_changes_nothing() -> None:
    assert {layer_multiplier(f"encoder.layer.{i}.norm1.weight", 1.0, 4) for i in range(4)} == {1.0}


def test_a_block_beyond_the_network_is_named() -> None:
    with pytest.raises(ValueError, match="block 12 of a network of 12"):
        layer_multiplier("encoder.layer.12.norm1.weight", 0.9, 12)
