"""What one has to know about a kind of encoder to read it: where its blocks are, what precedes the patches, and so on.

B images, h x w the patch grid, N = h w patches, T = prefix + N tokens, D features in heads of d each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Model = Any  # a vision model of transformers, timm or torchvision


@dataclass(frozen=True)
class Family:
    """One kind of encoder; every field is a function of the model.

    forward: normalised pixels [B, 3, H, W] to tokens [B, T, D], or to the map [B, D, h, w] of a convolutional network,
    after the final norm. blocks: blocks or stages, in order. norm: the final norm of such tokens, or of the last map.
    patch: pixels along one side of a patch, or the total stride. width: D. prefix: tokens before the patches, of which
    the first is the class token where `has_cls`. native: the only size (height, width) it takes, None for any.

    What follows is None where the family has no self-attention. attention: the attention inside a block.
    keys: that module and its input [B, T, D] to keys [B, T, heads, d], before any rotation by position.
    weights: runs the model and returns the attention [B, heads, T, T] of one of its attention modules.
    pooling: model and normed patches [B, N, D] to the attention [B, heads, N] of a learned query; None without one.
    """

    forward: Callable[[Model, Tensor], Tensor]
    blocks: Callable[[Model], Sequence[nn.Module]]
    norm: Callable[[Model, Tensor], Tensor]
    patch: Callable[[Model], int]
    width: Callable[[Model], int]
    prefix: Callable[[Model], int] = lambda model: 0
    has_cls: Callable[[Model], bool] = lambda model: False
    native: Callable[[Model], tuple[int, int] | None] = lambda model: None
    attention: Callable[[Any], nn.Module] | None = None
    keys: Callable[[Any, Tensor], Tensor] | None = None
    weights: Callable[[Model, Any, Callable[[], object]], Tensor] | None = None
    pooling: Callable[[Model, Tensor], Tensor | None] = lambda model, patches: None


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first input of each call of `module`, as they come."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def unchanged(model: Model, hidden: Tensor) -> Tensor:
    """The norm of an encoder that has none."""
    return hidden


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a config's image size, which may be one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
