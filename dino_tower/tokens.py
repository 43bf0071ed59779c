"""What an encoder says about pictures: class token and patch tokens of any layer, attention, keys.

Every function takes a vision model of transformers, timm or torchvision that has an entry in
`dino_tower.families.FAMILIES`, and normalised pixels [B, 3, H, W] whose H and W are multiples of the patch.
Shapes: B images, h x w the patch grid, T = prefix + h w tokens, D features in heads of d each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dino_tower.errors import ConfigError
from dino_tower.families import FAMILIES, family_name, family_of
from dino_tower.families.family import Family, Model, inputs_of

__all__ = ["FAMILIES", "Tokens", "last_attention", "last_keys", "layers", "patch_size", "tokens", "width"]


class Tokens(NamedTuple):
    """patches [B, h, w, D] after the final norm; cls [B, D], or None where the encoder has no class token."""

    patches: Tensor
    cls: Tensor | None

    @property
    def pooled(self) -> Tensor:
        """One vector an image [B, D]: the class token, else the mean of the normed patches."""
        return self.cls if self.cls is not None else self.patches.mean((1, 2))


def tokens(model: Model, pixels: Tensor, masks: Tensor | None = None) -> Tokens:
    """The tokens after the final norm. Differentiable. Raises ConfigError for a class that is not in FAMILIES.

    masks: bool [B, h, w], patches in whose place the model sees its mask token; for Dinov2, its kind with registers,
    and DINOv3 of transformers, whose outputs are normed already.
    """
    family = family_of(model)
    if masks is None:
        return _split(family, model, family.forward(model, pixels), pixels)
    return _split(family, model, model(pixels, bool_masked_pos=masks.flatten(1)).last_hidden_state, pixels)


def layers(model: Model, pixels: Tensor, which: int | Sequence[int], norm: bool = True) -> list[Tokens]:
    """The tokens of several layers from one forward, in the order asked for.

    which: the last so many layers, or their numbers: 0 is what enters the first block, i what block i gives, -1 the
    last. norm: apply the encoder's final norm to each, as DINOv2's get_intermediate_layers does; without it they are
    transformers' hidden_states. A convolutional network has stages instead, whose grids and widths differ, and its
    norm fits the last of them only. Raises ConfigError for a layer that is not there.
    """
    family = family_of(model)
    blocks = list(family.blocks(model))
    numbers = [_layer(n, len(blocks)) for n in (range(-which, 0) if isinstance(which, int) else which)]
    seen: dict[int, Tensor] = {}
    hooks = [_note_output(blocks[n - 1], seen, n) for n in set(numbers) if n]
    hooks += [_note_input(blocks[0], seen)] if 0 in numbers else []
    try:
        family.forward(model, pixels)
    finally:
        for hook in hooks:
            hook.remove()
    fits = [norm and (seen[n].ndim == 3 or n == len(blocks)) for n in numbers]
    found = [family.norm(model, seen[n]) if fit else seen[n] for n, fit in zip(numbers, fits, strict=True)]
    return [_split(family, model, hidden, pixels) for hidden in found]


@torch.no_grad()
def last_attention(model: Model, pixels: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block: [B, heads, h, w], summing to less than 1.

    Of an encoder that pools with a learned query instead (SigLIP), the attention of that query, summing to 1.
    Raises ConfigError for an encoder that has neither.
    """
    family = family_of(model)
    attention = _last_attention_module(family, model)
    if not family.has_cls(model):
        patches = _split(family, model, family.forward(model, pixels), pixels).patches
        weights = family.pooling(model, patches.flatten(1, 2))
        if weights is None:
            raise ConfigError(
                f"a {family_name(model)} without class token and pooling head has no attention that could be drawn"
            )
        return weights.unflatten(-1, patches.shape[1:3])
    assert family.weights is not None
    weights = family.weights(model, attention, lambda: family.forward(model, pixels))
    return weights[:, :, 0, family.prefix(model) :].unflatten(-1, _grid(family, model, pixels))


@torch.no_grad()
def last_keys(model: Model, pixels: Tensor) -> Tensor:
    """Keys of the patches in the last block [B, heads, h, w, d], before any rotation by position: what LOST and
    TokenCut compare patches by. Raises ConfigError for an encoder without self-attention."""
    family = family_of(model)
    attention = _last_attention_module(family, model)
    assert family.keys is not None
    with inputs_of(attention) as seen:
        family.forward(model, pixels)
    keys = family.keys(attention, seen[0])[:, family.prefix(model) :]
    return keys.unflatten(1, _grid(family, model, pixels)).movedim(3, 1)


def patch_size(model: Model) -> int:
    """Pixels along one side of a patch; for a convolutional network its total stride."""
    return family_of(model).patch(model)


def width(model: Model) -> int:
    """Features of one token."""
    return family_of(model).width(model)


def _last_attention_module(family: Family, model: Model) -> nn.Module:
    if family.attention is None:
        raise ConfigError(f"a {family_name(model)} has no attention and no keys: it is convolutional or fused")
    return family.attention(list(family.blocks(model))[-1])


def _layer(number: int, depth: int) -> int:
    if not -depth - 1 <= number <= depth:
        raise ConfigError(f"no layer {number}: this encoder has {depth}; choices: {-depth - 1} to {depth}")
    return number % (depth + 1)


def _note_output(block: nn.Module, seen: dict[int, Tensor], number: int) -> torch.utils.hooks.RemovableHandle:
    def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen[number] = output[0] if isinstance(output, tuple) else output

    return block.register_forward_hook(note)


def _note_input(block: nn.Module, seen: dict[int, Tensor]) -> torch.utils.hooks.RemovableHandle:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen[0] = args[0]

    return block.register_forward_pre_hook(note)


def _grid(family: Family, model: Model, pixels: Tensor) -> tuple[int, int]:
    patch = family.patch(model)
    return pixels.shape[-2] // patch, pixels.shape[-1] // patch


def _split(family: Family, model: Model, hidden: Tensor, pixels: Tensor) -> Tokens:
    """[B, T, D] or [B, D, h, w] to tokens."""
    if hidden.ndim == 4:
        return Tokens(hidden.movedim(1, -1), None)
    patches = hidden[:, family.prefix(model) :].unflatten(1, _grid(family, model, pixels))
    return Tokens(patches, hidden[:, 0] if family.has_cls(model) else None)
