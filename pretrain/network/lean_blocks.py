"""Blocks of a ViT that leave out work without effect: same weights, same random draws, same numbers to rounding.

B images, T tokens, D features. What a block of transformers computes and a step can do without:

- what the last block does with tokens that nobody reads: where only class tokens are looked at, it needs keys and
  values of all tokens, but query, projection and MLP of the class token alone;
- branches whose path is dropped (stochastic depth): they are computed for the other pictures only, as DINOv2's own code
  does (dinov2/layers/block.py::drop_add_residual_stochastic_depth), here with the published rule for whom to drop;
- products with a LayerScale that is fixed at 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersLayer

from dino_tower.families import family_of
from dino_tower.tokens import tokens


def make_lean(backbone: PreTrainedModel) -> None:
    """Let the blocks of a Dinov2Model, with or without registers, leave such work out; others stay as they are.

    Parameters keep their names and values. A LayerScale that is frozen at 1 when this is called is taken to stay so.
    """
    blocks: list[Any] = list(family_of(backbone).blocks(backbone))
    for block in blocks:
        if type(block) in LEAN:
            block.__class__ = LEAN[type(block)]
            block.last = block is blocks[-1]
            block.unscaled = all(
                not scale.lambda1.requires_grad and bool((scale.lambda1 == 1).all())
                for scale in (block.layer_scale1, block.layer_scale2)
            )


def class_tokens(backbone: PreTrainedModel, pixels: Tensor, masks: Tensor | None = None) -> Tensor:
    """What `tokens(backbone, pixels, masks).pooled` is, [B, D], without the work for other tokens of the last block."""
    if not isinstance(list(family_of(backbone).blocks(backbone))[-1], Lean):
        return tokens(backbone, pixels, masks).pooled
    hidden = None if masks is None else masks.flatten(1)
    pooled: Tensor = backbone(pixels, bool_masked_pos=hidden, class_token_only=True).pooler_output
    return pooled


class Lean(nn.Module):
    """What is put in front of a block's class."""

    last: bool
    unscaled: bool

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, class_token_only: bool = False, **kwargs: Any
    ) -> Tensor:
        """Tokens [B, T, D] to [B, T, D]; of the last block, with class_token_only, [B, 1, D]."""
        block: Any = self
        if attention_mask is not None:
            return super().forward(hidden_states, attention_mask, **kwargs)  # type: ignore[misc]
        if class_token_only and self.last:
            x = self._add(
                hidden_states[:, :1],
                lambda rows: _attention_of_first(block.attention, block.norm1(rows)),
                block.layer_scale1,
                hidden_states,
            )
        else:
            x = self._add(
                hidden_states, lambda rows: block.attention(block.norm1(rows), **kwargs)[0], block.layer_scale1
            )
        return self._add(x, lambda rows: block.mlp(block.norm2(rows)), block.layer_scale2)

    def _add(
        self, x: Tensor, branch: Callable[[Tensor], Tensor], scale: nn.Module, inputs: Tensor | None = None
    ) -> Tensor:
        """x + drop_path(scale(branch(inputs))); inputs are x itself by default."""
        inputs = x if inputs is None else inputs

        def run(rows: Tensor) -> Tensor:
            found = branch(rows)
            return found if self.unscaled else scale(found)

        rate = getattr(self.drop_path, "drop_prob", 0.0) if self.training else 0.0
        if rate == 0:
            return x + run(inputs)
        keep = 1 - rate
        drawn = torch.floor(torch.rand(len(x), 1, 1) + keep)  # on the CPU: a GPU need not be waited for
        # a compiled network wants shapes that stay; with no path kept, the weights still want a gradient of zero
        if torch.compiler.is_compiling() or not drawn.any():
            return x + run(inputs) * (drawn / keep).to(x)
        kept = drawn.flatten().nonzero()[:, 0]
        if len(kept) == len(x):
            return torch.add(x, run(inputs), alpha=1 / keep)
        kept = kept.to(x.device, non_blocking=True)
        return x.index_add(0, kept, run(inputs.index_select(0, kept)).to(x.dtype), alpha=1 / keep)


class LeanDinov2Layer(Lean, Dinov2Layer):
    """Subclasses of transformers' own: it wraps their forward for gradient checkpointing."""


class LeanDinov2WithRegistersLayer(Lean, Dinov2WithRegistersLayer):
    """The same for the kind with registers."""


LEAN: dict[type[nn.Module], type[Lean]] = {
    Dinov2Layer: LeanDinov2Layer,
    Dinov2WithRegistersLayer: LeanDinov2WithRegistersLayer,
}


def _attention_of_first(attention: Any, x: Tensor) -> Tensor:
    """Self-attention whose only query is the first of the tokens [B, T, D]; gives [B, 1, D]."""
    heads = (len(x), -1, attention.num_attention_heads, attention.head_dim)
    asked = ((attention.q_proj, x[:, :1]), (attention.k_proj, x), (attention.v_proj, x))
    q, k, v = (linear(rows).view(heads).transpose(1, 2) for linear, rows in asked)
    found = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling)
    projected: Tensor = attention.o_proj(found.transpose(1, 2).flatten(2))
    return projected
