"""Which weights of a VLM's tower learn: the ones that the VLM never reaches, and the ones that an adapter is for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from dino_tower.errors import ConfigError, unknown
from dino_tower.families import family_name, family_of
from dino_tower.vlm.facts import LIKE, VLMS, Vlm

FINAL_NORMS = ("layernorm", "norm", "post_layernorm")
HEADS = ("pooler", "head")  # they make the pooled vector, which a VLM does not read
FUSED = "dino_tower_fused"


def fact_of(vlm: Any) -> Vlm:
    """What `dino_tower.vlm.facts` says of a model's class. Raises ConfigError for a class that takes no tower so."""
    model_type = LIKE.get(vlm.config.model_type, vlm.config.model_type)
    for fact in VLMS.values():
        if fact.model_type == model_type and fact.module == "model.vision_tower" and not fact.refuses:
            return fact
    known = [name for name, fact in VLMS.items() if fact.module == "model.vision_tower" and not fact.refuses]
    raise unknown("VLM class that takes a tower", type(vlm).__name__, known)


def tower_of(vlm: Any) -> Any:
    """The vision model inside a VLM, also of one that PEFT has wrapped."""
    base = vlm.get_base_model() if hasattr(vlm, "get_base_model") else vlm
    return base.get_submodule(fact_of(base).module)


def tower_targets(vlm: Any) -> str:
    """`target_modules` for a PEFT config that adapts the tower's blocks and nothing of the language model.

    A pattern over full names: `["q_proj", "v_proj"]` would hit the language model as well. Raises ConfigError for a
    tower without linear layers in its blocks.
    """
    where, tower = fact_of(vlm).module, tower_of(vlm)
    names = {name.split(".")[-1] for block in _blocks(tower) for name, m in block.named_modules() if _is_linear(m)}
    if not names:
        raise ConfigError(f"a {family_name(tower)} has no linear layers in its blocks: nothing for PEFT to adapt")
    return rf"{re.escape(where)}\..*\.({'|'.join(sorted(names))})"


def freeze_unreached(vlm: Any) -> list[str]:
    """Take `requires_grad` from the tower's weights that no gradient reaches, and return their names in the VLM.

    With LLaVA that is the final norm (patches are read before it), with `vision_feature_layer=-2` the last block too,
    always a mask token and what makes the pooled vector. DDP would wait for them: "Expected to have finished
    reduction in the prior iteration".
    """
    fact, tower = fact_of(vlm), tower_of(vlm)
    dead = set(_unreached(tower, fact, vlm.config))
    for name, parameter in tower.named_parameters():
        if name in dead:
            parameter.requires_grad_(False)
    return [f"{fact.module}.{name}" for name in sorted(dead)]


def _unreached(tower: Any, fact: Vlm, config: Any) -> Iterator[str]:
    family = family_name(tower)
    before_norm = family != FUSED and (fact.reads == "layer" or family == "clip_vision_model")
    layer = getattr(config, "vision_feature_layer", -1)
    if fact.reads == "last" and layer != -1:  # InternVL with another layer reads hidden states
        before_norm = True
    blocks = list(_blocks(tower)) if before_norm else []
    chosen = [layer] if isinstance(layer, int) else list(layer)
    deepest = max(number % (len(blocks) + 1) for number in chosen)
    skipped = {id(p) for block in blocks[deepest:] for p in block.parameters()}
    for name, parameter in tower.named_parameters():
        parts = name.split(".")
        top = parts[2] if parts[0] == "members" else parts[0]
        behind = before_norm and (top in FINAL_NORMS or id(parameter) in skipped)
        if behind or top in HEADS or name.endswith("mask_token"):
            yield name


def _blocks(tower: Any) -> Iterator[nn.Module]:
    if family_name(tower) == FUSED:
        for member in tower.members:
            yield from family_of(member).blocks(member)
    else:
        yield from family_of(tower).blocks(tower)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)
