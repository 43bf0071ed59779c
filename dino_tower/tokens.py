"""What a vision model of transformers says about an image: class token and patch tokens, after the final norm.

Shapes: B images, h x w the patch grid, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dino_tower.errors import unknown


class Tokens(NamedTuple):
    """patches [B, h, w, D] after the final norm; cls [B, D], or None where the encoder has no class token."""

    patches: Tensor
    cls: Tensor | None

    @property
    def pooled(self) -> Tensor:
        """One vector an image [B, D]: the class token, else the mean of the normed patches."""
        return self.cls if self.cls is not None else self.patches.mean((1, 2))


def _with_prefix(model: PreTrainedModel, pixels: Tensor) -> Tokens:
    """Dinov2, Dinov2WithRegisters, DINOv3ViT: [CLS, registers, patches], already normed."""
    hidden = model(pixels).last_hidden_state
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    return Tokens(_grid(hidden[:, prefix:], pixels, model.config.patch_size), hidden[:, 0])


def _siglip(model: PreTrainedModel, pixels: Tensor) -> Tokens:
    hidden = model(pixels, interpolate_pos_encoding=_resized(model, pixels)).last_hidden_state
    return Tokens(_grid(hidden, pixels, model.config.patch_size), None)


def _clip(model: PreTrainedModel, pixels: Tensor) -> Tokens:
    hidden = model(pixels, interpolate_pos_encoding=_resized(model, pixels)).last_hidden_state
    norm: torch.nn.Module = model.get_submodule("post_layernorm")
    hidden = norm(hidden)  # the class norms its CLS only
    return Tokens(_grid(hidden[:, 1:], pixels, model.config.patch_size), hidden[:, 0])


def _resnet(model: PreTrainedModel, pixels: Tensor) -> Tokens:
    return Tokens(model(pixels).last_hidden_state.permute(0, 2, 3, 1), None)


FAMILIES = {
    "dinov2": _with_prefix,
    "dinov2_with_registers": _with_prefix,
    "dinov3_vit": _with_prefix,
    "siglip_vision_model": _siglip,
    "clip_vision_model": _clip,
    "resnet": _resnet,
}


def tokens(model: PreTrainedModel, pixels: Tensor) -> Tokens:
    """The tokens of normalised pixels [B, 3, H, W] (H and W multiples of the patch). Differentiable.

    Raises ConfigError for a class that has no entry in FAMILIES.
    """
    family = model.config.model_type
    if family not in FAMILIES:
        raise unknown("tower family", family, FAMILIES)
    return FAMILIES[family](model, pixels)


def patch_size(model: PreTrainedModel) -> int:
    """Pixels along one side of a patch; for a convolutional network its total stride."""
    if model.config.model_type == "resnet":
        return 4 * 2 ** (len(model.config.depths) - 1) * (2 if model.config.downsample_in_first_stage else 1)
    size = model.config.patch_size
    return size if isinstance(size, int) else size[0]


def width(model: PreTrainedModel) -> int:
    """Features of one token."""
    return model.config.hidden_sizes[-1] if model.config.model_type == "resnet" else model.config.hidden_size


def _grid(patches: Tensor, pixels: Tensor, patch: int) -> Tensor:
    height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    return patches.unflatten(1, (height, width))


def _resized(model: PreTrainedModel, pixels: Tensor) -> bool:
    return tuple(pixels.shape[-2:]) != (model.config.image_size,) * 2


@torch.no_grad()
def last_attention(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block: [B, heads, h, w], summing to less than 1.

    Needs a model loaded with attn_implementation="eager" and a class token; raises ValueError otherwise.
    """
    family = model.config.model_type
    if family in ("resnet", "siglip_vision_model"):
        raise ValueError(f"a {family} has no class token whose attention could be drawn")
    sizes = {"interpolate_pos_encoding": _resized(model, pixels)} if family == "clip_vision_model" else {}
    attentions = model(pixels, output_attentions=True, **sizes).attentions
    if not attentions or attentions[-1] is None:
        raise ValueError('attention maps need attn_implementation="eager"')
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    patch = patch_size(model)
    grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    return attentions[-1][:, :, 0, prefix:].unflatten(-1, grid)
