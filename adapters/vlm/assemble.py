"""Putting a VLM together from modules that exist: nothing is drawn or copied that is replaced a moment later."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import initialization

PROJECTOR = "multi_modal_projector"
TOWER = "vision_tower"


def assemble(
    kind: type[Any], config: Any, tower: Any, parts: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> Any:
    """A `kind` (a VLM class of transformers) around a copy of `tower`, with a new projector.

    parts: modules and parameters of the VLM by full name ("lm_head", "model.language_model", "model.image_newline"):
    they are taken as they are, not copied. dtype, device: of the tower's copy and of the projector.
    """
    with initialization.no_init_weights(), initialization.meta_device_safe_creation_ops(), torch.device("meta"):
        vlm = kind(config)
    inside = copy.deepcopy(tower).to(device=device, dtype=dtype)
    inside.requires_grad_(True)
    if hasattr(vlm.config, "projection_dim"):  # PaliGemma's projector looks for it in the tower's config
        inside.config.projection_dim = vlm.config.projection_dim
    vlm.config.vision_config = vlm.model.config.vision_config = inside.config
    setattr(vlm.model, TOWER, inside)
    for name, part in parts.items():
        owner, _, leaf = name.rpartition(".")
        setattr(vlm.get_submodule(owner), leaf, part)
    setattr(vlm.model, PROJECTOR, new_projector(vlm).to(device=device, dtype=dtype))
    vlm.tie_weights()
    left = [name for name, tensor in vlm.state_dict().items() if tensor.is_meta]
    assert not left, f"{kind.__name__} has parts that nobody gave: {', '.join(left)}"
    return vlm.eval()


def new_projector(vlm: Any) -> nn.Module:
    """A projector for the config of a VLM, drawn as its class draws it."""
    if hasattr(vlm, "build_projector"):
        return vlm.build_projector(vlm.config)
    projector = type(getattr(vlm.model, PROJECTOR))(vlm.config)
    projector.apply(vlm._init_weights)
    return projector


def parts_of(vlm: Any) -> dict[str, Any]:
    """Everything of a VLM but its tower and projector: modules, and parameters that stand outside of any."""
    found = {name: child for name, child in vlm.named_children() if name != "model"}
    found |= {f"model.{name}": child for name, child in vlm.model.named_children() if name not in (TOWER, PROJECTOR)}
    found |= {f"model.{name}": value for name, value in vlm.model.named_parameters(recurse=False)}
    return found
