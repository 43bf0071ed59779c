"""Reading torchvision's models, whose `forward` goes straight to class scores."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.families.family import Family, Model, inputs_of, unchanged


def vit(model: Model, pixels: Tensor) -> Tensor:
    """`VisionTransformer.forward` up to the final norm."""
    hidden = model._process_input(pixels)
    return model.encoder(torch.cat([model.class_token.expand(len(hidden), -1, -1), hidden], 1))


def vit_keys(attention: Any, hidden: Tensor) -> Tensor:
    """[B, T, D] to [B, T, heads, d]."""
    weight, bias = attention.in_proj_weight.chunk(3)[1], attention.in_proj_bias.chunk(3)[1]
    return F.linear(hidden, weight, bias).unflatten(-1, (attention.num_heads, -1))


def vit_weights(model: Model, attention: Any, run: Callable[[], object]) -> Tensor:
    """[B, heads, T, T]: the encoder never asks for the weights, so its last attention is computed again."""
    with inputs_of(attention) as seen:
        run()
    return attention(seen[0], seen[0], seen[0], average_attn_weights=False)[1]


def resnet(model: Model, pixels: Tensor) -> Tensor:
    """`ResNet.forward` up to the last stage."""
    hidden = model.maxpool(model.relu(model.bn1(model.conv1(pixels))))
    return model.layer4(model.layer3(model.layer2(model.layer1(hidden))))


VIT = Family(
    forward=vit,
    blocks=attrgetter("encoder.layers"),
    norm=lambda model, hidden: model.encoder.ln(hidden),
    patch=attrgetter("patch_size"),
    width=attrgetter("hidden_dim"),
    prefix=lambda model: 1,
    has_cls=lambda model: True,
    native=lambda model: (model.image_size, model.image_size),
    attention=attrgetter("self_attention"),
    keys=vit_keys,
    weights=vit_weights,
)
RESNET = Family(
    forward=resnet,
    blocks=attrgetter("layer1", "layer2", "layer3", "layer4"),
    norm=unchanged,
    patch=lambda model: 32,
    width=attrgetter("inplanes"),
)
CONVNEXT = Family(
    forward=lambda model, pixels: model.classifier[0](model.features(pixels)),
    blocks=lambda model: model.features[1::2],
    norm=lambda model, hidden: model.classifier[0](hidden),
    patch=lambda model: 32,
    width=lambda model: model.classifier[0].normalized_shape[0],
)
