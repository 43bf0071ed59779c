"""The layers of each family of towers that PEFT methods adapt, by name.

Layers are named by one regular expression over the blocks, so that heads and poolers of the same spelling stay as they
are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dino_tower.errors import ConfigError, unknown

if TYPE_CHECKING:
    from torch import nn

    from dino_tower.families.family import Model

FUSED = "dino_tower_fused"  # several towers in one: each of them has layers of its own
PLAIN = ("none", "full")  # a frozen tower, and one that is trained as a whole: no method of PEFT


@dataclass(frozen=True)
class Layers:
    """Where a family keeps its blocks, and how layers are called inside one; `norms` are followed by the final norm.

    Names that a model lacks (a gate, say) are passed over.
    """

    blocks: str
    attention: tuple[str, ...]
    values: tuple[str, ...]  # keys and values, or the fused projection
    mlp: tuple[str, ...]
    last: tuple[str, ...]  # the layer that ends the MLP
    norms: tuple[str, ...]
    final: tuple[str, ...]


@dataclass(frozen=True)
class Targets:
    """Regular expressions over module names: what is adapted, and which of it ends an MLP (IA3 treats it apart)."""

    layers: str
    feedforward: str
    inputs: tuple[int, ...]  # features that the adapted layers take
    outputs: tuple[int, ...]


def _qkvo(out: str, before: str) -> tuple[str, ...]:
    return tuple(f"{before}.{name}" for name in ("q_proj", "k_proj", "v_proj", out))


_MLP = ("mlp.fc1", "mlp.fc2", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_LAST = ("mlp.fc2", "mlp.down_proj")
_OURS = _qkvo("o_proj", "attention")
_CLIP = _qkvo("out_proj", "self_attn")
_VIT = Layers(
    "layers", _OURS, _OURS[1:3], _MLP, _LAST, ("layernorm_before", "layernorm_after"), ("layernorm",)
)  # fmt: skip
_DINOV2 = Layers("encoder.layer", _OURS, _OURS[1:3], _MLP, _LAST, ("norm1", "norm2"), ("layernorm",))
_SIGLIP = Layers(
    "encoder.layers", _CLIP, _CLIP[1:3], _MLP, _LAST, ("layer_norm1", "layer_norm2"), ("post_layernorm",)
)  # fmt: skip
_TIMM = Layers(
    "blocks", ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj"),
    ("attn.qkv", "attn.k_proj", "attn.v_proj"),
    ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2", "mlp.w1", "mlp.w2", "mlp.w3"), ("mlp.fc2", "mlp.w3"),
    ("norm1", "norm2"), ("norm", "fc_norm"),
)  # fmt: skip
LAYERS: dict[str, Layers] = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": Layers("model.layer", _OURS, _OURS[1:3], _MLP, _LAST, ("norm1", "norm2"), ("norm",)),
    "vit": _VIT,
    "deit": _VIT,
    "vit_msn": _VIT,
    "ijepa": _VIT,
    "beit": Layers(
        "layers", _OURS, _OURS[1:3], _MLP, _LAST, _VIT.norms, ("layernorm", "pooler.layernorm")
    ),
    "clip_vision_model": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2_vision_model": _SIGLIP,
    "timm VisionTransformer": _TIMM,
    "timm VisionTransformerDistilled": _TIMM,
    "timm Eva": _TIMM,
    "timm Beit": _TIMM,
}  # fmt: skip


def find_targets(model: Model, method: str, part: str, modules: Sequence[str] = ()) -> Targets:
    """The layers of this tower that a method adapts: those named by `modules`, or the method's own choice.

    part: which layers the method is for: linear, values or norms.

    Raises ConfigError for a tower without blocks of linear layers, and for names that are not there.
    """
    from torch import nn

    from dino_tower.families import family_name

    name = family_name(model)
    if name == FUSED:
        return _joined([find_targets(member, method, part, modules) for member in model.members])
    if name not in LAYERS:
        raise ConfigError(
            f"method {method} adapts the layers of a transformer by name, and a {name} has none that are known; "
            "take a ViT, or train a head on it as it is"
        )
    layers = LAYERS[name]
    present = _with_weights(model.get_submodule(f"{layers.blocks}.0"))
    fitting = {n: m for n, m in present.items() if isinstance(m, nn.Linear) != (part == "norms")}
    wanted = {
        "linear": layers.attention + layers.mlp,
        "values": layers.values + layers.last,
        "norms": layers.norms,
    }[part]
    chosen = [n for n in wanted if n in fitting]
    if modules:
        chosen = [_named(one, fitting, method) for one in modules]
    blocks = re.escape(layers.blocks)
    found = rf"{blocks}\.\d+\.({_any(chosen)})"
    final = [n for n in layers.final if part == "norms" and not modules and n in _with_weights(model)]
    found = rf"{found}|{_any(final)}" if final else found
    ends = [n for n in chosen if n in layers.last]
    linear = [m for n, m in present.items() if n in chosen and isinstance(m, nn.Linear)]
    return Targets(
        found,
        rf"{blocks}\.\d+\.({_any(ends)})" if ends else "",
        tuple(m.in_features for m in linear),
        tuple(m.out_features for m in linear),
    )


def _joined(members: Sequence[Targets]) -> Targets:
    """Those of a fused tower: each member's, under its number."""

    def any_of(patterns: Sequence[str]) -> str:
        return "|".join(rf"members\.{i}\.({pattern})" for i, pattern in enumerate(patterns) if pattern)

    return Targets(
        any_of([member.layers for member in members]),
        any_of([member.feedforward for member in members]),
        tuple(n for member in members for n in member.inputs),
        tuple(n for member in members for n in member.outputs),
    )


def _with_weights(module: nn.Module) -> dict[str, nn.Module]:
    """The layers with weights of their own, by their names inside `module`."""
    return {name: m for name, m in module.named_modules() if next(m.parameters(recurse=False), None) is not None}


def _named(given: str, fitting: dict[str, nn.Module], method: str) -> str:
    same = [name for name in fitting if name == given or name.endswith(f".{given}")]
    if len(same) != 1:
        raise unknown(f"layer for {method} to adapt", given, fitting, "peft.modules")
    return same[0]


def _any(names: Sequence[str]) -> str:
    return "|".join(map(re.escape, names))
