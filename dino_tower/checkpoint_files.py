"""Weights out of the files that other people's training code left behind, without running what is inside them.

A `.pth` is a pickle: reading it the usual way runs any code that its author put there. Here PyTorch's weights-only
reader is used, which builds tensors and plain containers and refuses everything else. The one exception is
`argparse.Namespace`, a bag of settings without code, in which the original DINO checkpoints keep their command line.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_tower.checkpoint import load_tensors, reason
from dino_tower.errors import ConfigError, unknown

Weights = dict[str, Tensor]

NETWORKS = ("teacher", "student")  # the published DINO numbers are the teacher's
# Where training code puts the one network it has, tried in this order.
PLACES = ("state_dict", "model", "model_state_dict", "module", "backbone")
# What wrappers put in front of every name: DDP, torch.compile, FSDP, and the DINO code's own MultiCropWrapper.
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "backbone.", "encoder.", "model.")
# Heads that are trained beside a backbone and are no part of it.
HEADS = re.compile(r"(head|dino_head|ibot_head|heads|fc)\.")
BLOCK_CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")  # DINOv2 training keeps its blocks in chunks of whole numbering


def read_file(path: Path) -> Any:
    """What a checkpoint file holds: tensors by name for safetensors, else the (nested) dictionary that was pickled.

    Raises ConfigError naming the file when it is missing or damaged, and when it holds anything but tensors, plain
    containers and an argparse.Namespace: nothing of it has been run then.
    """
    if not path.is_file():
        raise ConfigError(f"no checkpoint file {str(path)!r}")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path}: {unsafe(error)}") from None
    except RuntimeError as error:  # the archive's reader; its first sentence says what, the others guess why
        raise ConfigError(f"{path}: a damaged checkpoint: {str(error).split('. ')[0]}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {reason(error)}") from None
    except (EOFError, ValueError, LookupError, TypeError, AttributeError):  # the unpickler's, for bytes that are none
        raise ConfigError(f"{path}: not a checkpoint: neither what torch.save writes nor a .safetensors file") from None


def unsafe(error: pickle.UnpicklingError) -> str:
    """What PyTorch's weights-only reader refused, in a few words."""
    asked = re.search(r"GLOBAL (\S+)", str(error))
    what = f"it asks for {asked[1]}" if asked else "it is not what torch.save writes"
    return f"not a checkpoint that can be read safely: {what}; nothing was run"


def backbone_weights(held: Any, where: Path, network: str = "teacher") -> tuple[Weights, list[str]]:
    """The backbone's tensors under their plain names, and what was left out, one line each.

    held: from `read_file`; a bare state dict, or a training checkpoint with one under `student`, `teacher` or PLACES.
    network: which of a student and a teacher. Prefixes of WRAPPERS go, heads go.
    Raises ConfigError where there are no tensors.
    """
    if network not in NETWORKS:
        raise unknown("network of a checkpoint", network, NETWORKS, str(where))
    notes: list[str] = []
    if not isinstance(held, Mapping):
        raise ConfigError(f"{where}: no weights of a network in it, but one value of type {type(held).__name__}")
    if isinstance(held.get(network), Mapping):
        held = held[network]
        notes.append(f"the {network} of a training checkpoint was taken")
    elif any(isinstance(held.get(name), Mapping) for name in NETWORKS):
        raise ConfigError(f"{where}: this training checkpoint has no {network}; choose the other one with --weights")
    for place in PLACES:
        if isinstance(held.get(place), Mapping):
            held = held[place]
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    weights = {BLOCK_CHUNK.sub("blocks.", _unwrapped(name)): value for name, value in tensors.items()}
    kept = {name: value for name, value in weights.items() if not HEADS.match(name)}
    if not kept:
        choices = ", ".join(sorted(map(str, held))[:8])
        raise ConfigError(f"{where}: no weights of a network in it; its entries: {choices or 'none'}")
    if len(kept) < len(weights):
        notes.append(f"what belongs to heads was left out ({len(weights) - len(kept)} tensors)")
    return kept, notes


def _unwrapped(name: str) -> str:
    """`module.backbone.cls_token` is `cls_token`."""
    while prefix := next((p for p in WRAPPERS if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name
