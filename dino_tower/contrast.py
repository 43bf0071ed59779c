"""Contrastive losses between pictures and texts, of which a picture may have several.

R rows, C columns: pictures against texts, or texts against pictures. logits [R, C] are scaled cosines, positives [R, C]
says which belong together; each row has at least one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed.nn import functional as collective
from torch.nn import functional as F

LOSSES = ("clip", "siglip")
MAX_SCALE = math.log(100)  # CLIP's bound on the temperature (section 2.5)
START = {"clip": (math.log(1 / 0.07), None), "siglip": (math.log(10), -10.0)}  # ln of the scale, and bias, as published


def softmax_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over rows of the cross-entropy to an even distribution over the row's positives.

    With one positive a row it is one half of CLIP's loss (Radford et al. 2021, figure 3), and of UniCL's with several.
    """
    target = positives.to(logits.dtype)
    return F.cross_entropy(logits, target / target.sum(1, keepdim=True))


def sigmoid_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """SigLIP (Zhai et al. 2023, algorithm 1): sum over columns of -log sigmoid(+-logit), mean over rows."""
    return -F.logsigmoid(torch.where(positives, logits, -logits)).sum(1).mean()


def contrast(
    kind: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positives: Tensor, rank: int = 0
) -> Tensor:
    """The loss of this process's pictures [b, E] and texts [t, E], fp32 unit vectors, against those of all processes.

    positives: [B, T] of all processes, in order of rank. The mean of the processes' losses is the loss of one process
    with the joint batch, and so are its gradients: what is gathered carries them back.
    """
    images, texts = gathered(image), gathered(text)
    mine = positives[rank * len(image) : (rank + 1) * len(image)]
    own = positives[:, rank * len(text) : (rank + 1) * len(text)].T
    with torch.autocast(image.device.type, enabled=False):  # a scale of 100 would make of half precision's rounding 0.4
        logits = scale * image @ texts.T + bias
        if kind == "siglip":
            return sigmoid_loss(logits, mine)
        return (softmax_loss(logits, mine) + softmax_loss(scale * text @ images.T + bias, own)) / 2


def gathered(part: Tensor) -> Tensor:
    """The rows [b, ...] of all processes [B, ...], in order of rank.

    The gradient of a process's rows is the sum over what all processes did with them: after a mean over processes it is
    that of the joint batch.
    """
    if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return part
    return torch.cat(collective.all_gather(part))
