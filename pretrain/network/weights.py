"""Weights of a start in a backbone of this run, and what a network computes beside them.

Names and shapes do not tell all of it: the same weights with other heads, another activation or other rotary positions
are another network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from dino_tower.errors import ConfigError
from dino_tower.run.state import load_strictly

POSITIONS = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")  # of Dinov2; of SigLIP and CLIP
ACTIVATIONS = ("activation_fn", "act_fn", "activation")  # what the classes call theirs
# What is no part of a tower in a model of pictures and texts.
ASIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
POOLING = "head."  # of SigLIP; towers of it have none here
# What no setting of ours chooses.
OF_THE_CLASS = ("rope_theta", "layer_type", "downsample_in_first_stage", "downsample_in_bottleneck")


def load_backbone(backbone: PreTrainedModel, source: str | Path, own: bool = False) -> None:
    """Weights of a transformers directory or Hub id into `backbone`: same class and shapes, nothing missing.

    A position table of another size is resized to this backbone's grid, bicubically as its class does when serving.
    Activation and LayerNorm's epsilon, which no setting names, become the source's. Raises ConfigError otherwise, and
    where this backbone would compute something else with the same weights. own: of this very run, whose settings are
    compared elsewhere.
    """
    kind: Any = type(backbone)
    try:
        loaded, info = kind.from_pretrained(source, output_loading_info=True)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{source}: cannot be loaded as {kind.__name__}: {' '.join(str(error).split())[:300]}"
        ) from None
    unknown = [key for key in info["unexpected_keys"] if not key.startswith(ASIDE)]
    if info["missing_keys"] or unknown:
        odd = sorted(info["missing_keys"] or unknown)[:3]
        word = "lacks" if info["missing_keys"] else "has unknown"
        raise ConfigError(f"{source}: not a {kind.__name__} of this shape: {word} {', '.join(odd)}")
    weights = {k: v for k, v in _on_the_grid_of(backbone, loaded).items() if not k.startswith(POOLING)}
    load_strictly(backbone, weights, Path(str(source)))
    if not own:
        _check_alike(backbone, loaded, source)
    compute_like(backbone, loaded)


def compute_like(backbone: PreTrainedModel, other: PreTrainedModel) -> None:
    """Give a backbone the activation and LayerNorm's epsilon of another one of its class and depth."""
    modules: list[tuple[str, Any]] = [*backbone.named_modules()]
    for name, mine in modules:
        theirs: Any = other.get_submodule(name)
        if isinstance(theirs, nn.LayerNorm):
            mine.eps = theirs.eps
        for key in ACTIVATIONS:
            if hasattr(theirs, key):
                setattr(mine, key, getattr(theirs, key))
    for key in ("hidden_act", "layer_norm_eps"):
        if hasattr(other.config, key):
            setattr(backbone.config, key, getattr(other.config, key))


def _check_alike(backbone: PreTrainedModel, loaded: PreTrainedModel, source: str | Path) -> None:
    """Raise ConfigError for a start that computes something else with its weights than this backbone will."""
    own, theirs = (getattr(model.config, "num_attention_heads", None) for model in (backbone, loaded))
    if own != theirs:
        raise ConfigError(f"{source}: has {theirs} attention heads, not {own}: set --model.heads {theirs}")
    for key in OF_THE_CLASS:
        own, theirs = getattr(backbone.config, key, None), getattr(loaded.config, key, None)
        if own != theirs:
            raise ConfigError(
                f"{source}: its config has {key} {theirs!r}, and this class is built with {own!r}: take another start, "
                "or an adapter in this one (--preset dino_lora)"
            )
    scales = [p for name, p in backbone.named_parameters() if name.endswith("lambda1")]
    if getattr(backbone.config, "layerscale_value", None) == 1 and not all(bool((p == 1).all()) for p in scales):
        raise ConfigError(
            f"{source}: has a LayerScale, which model.layerscale 1 would hold where it is: set --model.layerscale 1e-5 "
            "(any number but 1), and it is trained from there"
        )


@torch.no_grad()
def _on_the_grid_of(backbone: PreTrainedModel, loaded: Any) -> dict[str, Tensor]:
    """The loaded weights, the position table resized where the backbone has another grid."""
    weights, own, size = loaded.state_dict(), backbone.state_dict(), getattr(backbone.config, "image_size", None)
    for name in POSITIONS:
        if name in own and own[name].shape != weights[name].shape and own[name].shape[-1] == weights[name].shape[-1]:
            like = torch.empty(1, *own[name].shape[-2:])
            table = loaded.embeddings.interpolate_pos_encoding(like, size, size)
            return {**weights, name: table.reshape(own[name].shape)}
    return weights
