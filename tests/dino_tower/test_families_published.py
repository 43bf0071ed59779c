"""The files in which self-supervised ResNets were published, and files that only look like them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from dino_tower import load_tower
from dino_tower.errors import ConfigError
from dino_tower.published import PREFIXES, encoder_weights

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shaken(model: nn.Module) -> Any:
    """Weights that tell every part of the model from every other: no zeros, no ones."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


def tiny_resnet() -> Any:
    """torchvision's, with one block a stage."""
    return shaken(ResNet(BasicBlock, [1, 1, 1, 1]))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_encoder_is_found_whatever_stands_before_its_names(prefix: str) -> None:
    names = ("conv1.weight", "layer1.0.conv1.weight", "layer4.2.bn3.running_var")
    held = {f"{prefix}{k}": torch.full((1,), float(i)) for i, k in enumerate(names)}
    heads = {f"{prefix}fc.weight": PIXELS, f"{prefix}projection_head.0.bias": PIXELS}
    if prefix in ("module.encoder_q.", "module.base_encoder."):  # the momentum twin, which has all the same names
        heads |= {f"module.{who}.{k}": PIXELS for who in ("encoder_k", "momentum_encoder") for k in names}
    found = encoder_weights(held | heads, "x")
    assert {k: v.item() for k, v in found.items()} == {k: i for i, k in enumerate(names)}


def test_a_published_resnet_with_all_that_stands_around_it(tmp_path: Path) -> None:
    model: Any = tiny_resnet()
    weights = {f"module.encoder_q.{k}": v for k, v in model.state_dict().items()}
    held = {"state_dict": weights | {"module.queue": PIXELS}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(held, tmp_path / "moco.pth.tar")
    tower = load_tower(tmp_path / "moco.pth.tar")
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(PIXELS))))
        want = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    assert torch.equal(tower(PIXELS).patches, want.permute(0, 2, 3, 1))
    assert list(tower.processor.image_mean) == [0.485, 0.456, 0.406]
    twin = load_tower(f"random:{tmp_path / 'moco.pth.tar'}")
    assert not torch.equal(twin(PIXELS).patches, want.permute(0, 2, 3, 1))


def test_a_published_resnet_whose_layers_are_numbered(tmp_path: Path) -> None:
    """A bare safetensors file of a bottleneck's narrow cousin, children by number, and no counters."""
    model: Any = shaken(ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=8))
    names = list(dict(model.named_children()))
    weights = {
        ".".join([str(names.index(k.split(".")[0])), *k.split(".")[1:]]): v
        for k, v in model.state_dict().items()
        if "num_batches" not in k and not k.startswith("fc.")
    }
    save_file({f"backbone.{k}": v for k, v in weights.items()}, tmp_path / "lightly.safetensors")
    tower = load_tower(tmp_path / "lightly.safetensors")
    assert torch.equal(tower.model.layer3[0].downsample[0].weight, model.layer3[0].downsample[0].weight)
    assert tower.width == 2048


def test_checkpoints_that_are_no_resnet(tmp_path: Path) -> None:
    model = tiny_resnet()
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    cases = {
        "lack layer4.0.bn2.weight": {k: v for k, v in weights.items() if k != "layer4.0.bn2.weight"},
        "no place for the weights layer5.0.w": weights | {"layer5.0.w": torch.zeros(1)},
        "not a ResNet of torchvision": weights | {"layer2.0.conv2.weight": torch.zeros(128, 128, 5, 5)},
        "checkpoint of a ViT; convert it": {"blocks.0.norm1.weight": torch.ones(2), "patch_embed.proj.weight": PIXELS},
        "no ResNet in this checkpoint; it holds a": {"a": torch.zeros(1)},
        "no ResNet in this checkpoint; it holds no tensors": {"epoch": 3},
    }
    for i, (message, held) in enumerate(cases.items()):
        torch.save(held, tmp_path / f"{i}.pth")
        with pytest.raises(ConfigError, match=message):
            load_tower(tmp_path / f"{i}.pth")
