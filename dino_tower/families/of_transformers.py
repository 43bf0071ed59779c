"""Reading the vision classes of transformers.

`hidden_states[-1]` is BEFORE the final norm in every one of them, CLIP norms its class token only, and five classes
resize their position table on request only: see the notes at each function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from dino_tower.families.family import Family, Model, pair, unchanged


def plain(model: Model, pixels: Tensor) -> Tensor:
    """Dinov2, DINOv3 and relatives: free sizes, already normed."""
    return model(pixels).last_hidden_state


def flagged(model: Model, pixels: Tensor) -> Tensor:
    """ViT and relatives: another size than the native one only with a flag. SigLIP ignores the size without it."""
    return model(pixels, interpolate_pos_encoding=_resized(model, pixels)).last_hidden_state


def clip(model: Model, pixels: Tensor) -> Tensor:
    """CLIP's own output norms the pooled class token and nothing else."""
    return model.post_layernorm(flagged(model, pixels))


def beit(model: Model, pixels: Tensor) -> Tensor:
    """With mean pooling BEiT keeps its final norm behind the mean."""
    return beit_norm(model, plain(model, pixels)) if model.config.use_mean_pooling else plain(model, pixels)


def beit_norm(model: Model, hidden: Tensor) -> Tensor:
    """The final norm, wherever the config has put it."""
    return model.pooler.layernorm(hidden) if model.config.use_mean_pooling else model.layernorm(hidden)


def naflex(model: Model, pixels: Tensor) -> Tensor:
    """SigLIP 2 of any aspect ratio takes pixels that are cut into patches already."""
    height, width = (n // model.config.patch_size for n in pixels.shape[-2:])
    shapes = torch.tensor([[height, width]] * len(pixels), device=pixels.device)
    mask = torch.ones(len(pixels), height * width, dtype=torch.long, device=pixels.device)
    return model(patchify(pixels, model.config.patch_size), mask, shapes).last_hidden_state


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] to [B, h w, patch patch C], as image_processing_siglip2.py::convert_image_to_patches."""
    batch, channels, height, width = pixels.shape
    cut = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, height: int, width: int, patch: int) -> Tensor:
    """The inverse of `patchify` for one picture: [>= h w, patch patch C] to [1, C, H, W]; padding is left out."""
    cut = patches[: height * width].reshape(height, width, patch, patch, -1)
    return cut.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)[None]


def convnext(model: Model, pixels: Tensor) -> Tensor:
    """ConvNeXt norms the mean of the map only; ours norms every place of it."""
    return convnext_norm(model, model(pixels).last_hidden_state)


def convnext_norm(model: Model, hidden: Tensor) -> Tensor:
    """The final LayerNorm over the channels of [B, D, h, w]; DINOv3's class spells it otherwise."""
    norm = model.layer_norm if hasattr(model, "layer_norm") else model.layernorm
    return norm(hidden.movedim(1, -1)).movedim(-1, 1)


def dinov3_convnext(model: Model, pixels: Tensor) -> Tensor:
    """The map before DINOv3's class flattens it behind its mean, normed as that class does."""
    return convnext_norm(model, model.model(pixels).last_hidden_state)


def by(name: str) -> Callable[[Model, Tensor], Tensor]:
    """The norm that the model keeps under this name."""
    return lambda model, hidden: getattr(model, name)(hidden)


def keys(attention: Any, hidden: Tensor) -> Tensor:
    """[B, T, D] to [B, T, heads, d]."""
    heads = getattr(attention, "num_heads", None) or attention.num_attention_heads
    return attention.k_proj(hidden).unflatten(-1, (heads, -1))


def weights(model: Model, attention: nn.Module, run: Callable[[], object]) -> Tensor:
    """[B, heads, T, T], from the eager implementation: the fused kernels do not return their weights."""
    with _eager(model), _weights_of(attention) as seen:
        run()
    return seen[0]


def probe(model: Model, patches: Tensor) -> Tensor | None:
    """SigLIP's pooling head: one learned query attends to the normed patches. None for a tower without the head."""
    if not model.config.vision_use_head:
        return None
    query = model.head.probe.expand(len(patches), -1, -1)
    return model.head.attention(query, patches, patches, average_attn_weights=False)[1][:, :, 0]


def registers(model: Model) -> int:
    """Class token and registers."""
    return 1 + getattr(model.config, "num_register_tokens", 0)


def stride(model: Model) -> int:
    """Total stride of a ResNet."""
    return 4 * 2 ** (len(model.config.depths) - 1) * (2 if model.config.downsample_in_first_stage else 1)


def convnext_stride(model: Model) -> int:
    """Total stride of a ConvNeXt: its stem, then a half at every stage but the first."""
    return getattr(model.config, "patch_size", 4) * 2 ** (len(model.config.depths) - 1)


def transformer(
    blocks: str,
    norm: Callable[[Model, Tensor], Tensor],
    *,
    forward: Callable[[Model, Tensor], Tensor] = plain,
    attention: str = "attention",
    prefix: Callable[[Model], int] = registers,
    has_cls: bool = True,
    pooling: Callable[[Model, Tensor], Tensor | None] = lambda model, patches: None,
) -> Family:
    """A ViT of transformers; `blocks` and `attention` are names in the model and in a block."""
    return Family(
        forward=forward,
        blocks=attrgetter(blocks),
        norm=norm,
        patch=lambda model: pair(model.config.patch_size)[0],
        width=lambda model: model.config.hidden_size,
        prefix=prefix,
        has_cls=lambda model: has_cls,
        attention=attrgetter(attention),
        keys=keys,
        weights=weights,
        pooling=pooling,
    )


def convolutional(
    blocks: str,
    forward: Callable[[Model, Tensor], Tensor],
    norm: Callable[[Model, Tensor], Tensor] = unchanged,
    patch: Callable[[Model], int] = convnext_stride,
) -> Family:
    """A convolutional network of transformers."""
    return Family(
        forward=forward,
        blocks=attrgetter(blocks),
        norm=norm,
        patch=patch,
        width=lambda model: model.config.hidden_sizes[-1],
    )


def _resized(model: Model, pixels: Tensor) -> bool:
    return tuple(pixels.shape[-2:]) != pair(model.config.image_size)


@contextmanager
def _weights_of(attention: nn.Module) -> Iterator[list[Tensor]]:
    """What `attention` returns beside its output."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        seen.append(output[1])

    hook = attention.register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def _eager(model: Model) -> Iterator[None]:
    before = model.config._attn_implementation
    if before == "eager":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
