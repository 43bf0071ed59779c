"""Layer-wise decay of the learning rate: the nearer a layer is to the pixels, the smaller its steps.

Reference: dinov2/utils/param_groups.py::get_vit_lr_decay_rate (BEiT, arXiv 2106.08254).
"""

from __future__ import annotations

import re

EMBEDDINGS = re.compile(
    r"(^|\.)(embeddings|cls_token|pos_embed|mask_token|register_tokens|patch_embed|rope_embeddings|pre_layrnorm)(\.|$)"
)
BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?)\.(\d+)\.")


def layer_multiplier(name: str, rate: float, layers: int) -> float:
    """What a parameter's learning rate is multiplied by: rate ** (layers + 1 - layer).

    Embeddings are layer 0, block i is layer i + 1, what follows the blocks (norm, heads) is `layers` + 1 and keeps its
    rate. Names as in transformers or in the original code. Raises ValueError for a block beyond `layers`.
    """
    block = BLOCK.search(name)
    if block is None:
        return rate ** (layers + 1) if EMBEDDINGS.search(name) else 1.0
    if int(block[1]) >= layers:
        raise ValueError(f"{name} is in block {block[1]} of a network of {layers} blocks")
    return rate ** (layers - int(block[1]))
