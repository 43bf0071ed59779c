"""ResNets as self-supervised methods published them: one file of weights, each under a name of its own.

DINO, SwAV, DeepCluster v2, MoCo v1 to v3, SimSiam, Barlow Twins, VICReg, and the PyTorch conversions of BYOL and SimCLR
are ResNets of torchvision's names behind some prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from dino_tower.checkpoint_files import read_file
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.loading import Loaded

SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".torch", ".safetensors")
# Where the files keep the weights. A file with a teacher and a student: the published numbers are the teacher's.
PLACES = ("state_dict", "teacher", "online_backbone", "model", "model_state_dict", "resnet", "encoder", "backbone")
# Prefix of the encoder -> whose file that is; the first one that fits is taken.
PREFIXES = {
    "": "DINO, Barlow Twins, VICReg, conversions of SimCLR and BYOL",
    "module.encoder_q.": "MoCo v1, v2",
    "module.base_encoder.": "MoCo v3",
    "module.backbone.": "DINO, the student of a training checkpoint",
    "module.encoder.": "SimSiam, SupCon, PixPro",
    "module.": "SwAV, DeepCluster v2, conversions of BYOL",
    "backbone.": "DINO, the teacher of a training checkpoint; mmselfsup, solo-learn",
    "encoder_q.": "MoCo, trained without DDP",
    "base_encoder.": "MoCo v3, trained without DDP",
    "encoder.": "conversions of SimCLR",
    "online_network.encoder.": "conversions of BYOL",
    "_feature_blocks.": "VISSL",
    "model.": "wrappers of Lightning",
}
# torchvision's children by number, where an encoder was wrapped as Sequential(*children): lightly and others.
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
HEADS = ("fc.", "projection_head.", "prototypes", "projector.", "head.", "predictor.", "classifier.", "avgpool.")
SIZE = 224


def load_published(path: Path, name: str, untrained: bool = False) -> Loaded:
    """A ResNet of any depth out of a checkpoint file, with ImageNet's mean and std; `untrained` keeps its shape only.

    Raises ConfigError for a file that cannot be read safely, and for one that holds something else than a ResNet.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{name}: a file is a tower only as a checkpoint ({', '.join(SUFFIXES)}); name a directory")
    weights = encoder_weights(_unnested(read_file(path)), name)
    model = _resnet_for(weights)
    counters = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    expected = {key for key in model.state_dict() if not key.startswith("fc.")} - counters
    if missing := sorted(expected - weights.keys()):
        raise ConfigError(f"{name}: the weights lack {', '.join(missing[:3])}")
    if extra := sorted(weights.keys() - expected - counters):
        raise ConfigError(f"{name}: a ResNet has no place for the weights {', '.join(extra[:3])}")
    try:
        if not untrained:
            model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{name}: not a ResNet of torchvision: {' '.join(str(error).split())[:200]}") from None
    return Loaded(model, processor_for(SIZE, 1))


def encoder_weights(held: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The encoder's weights under torchvision's names, without heads. Raises ConfigError."""
    tensors = {str(key): value for key, value in held.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if "0.weight" in inside and "4.0.conv1.weight" in inside:
            inside = {_renumbered(key): value for key, value in inside.items()}
        if "conv1.weight" in inside and "layer1.0.conv1.weight" in inside:
            return {key: value for key, value in inside.items() if not key.startswith(HEADS)}
    if any("patch_embed.proj.weight" in key for key in tensors):
        raise ConfigError(
            f"{name}: the checkpoint of a ViT; convert it first: dino-tower convert {name} OUT --to native"
        )
    found = ", ".join(sorted(tensors)[:3]) or "no tensors"
    raise ConfigError(f"{name}: no ResNet in this checkpoint; it holds {found}")


def _unnested(held: Any) -> Mapping[str, Any]:
    """The dictionary that holds tensors, however deep the file keeps it."""
    while isinstance(held, Mapping) and not any(isinstance(value, Tensor) for value in held.values()):
        place = next((p for p in PLACES if isinstance(held.get(p), Mapping)), None)
        if place is None:
            break
        held = held[place]
    return held if isinstance(held, Mapping) else {}


def _renumbered(key: str) -> str:
    first, dot, rest = key.partition(".")
    return NUMBERED.get(first, first) + dot + rest


def _resnet_for(weights: Mapping[str, Tensor]) -> ResNet:
    """The depth and width that the names and shapes tell of."""
    blocks = [len({key.split(".")[1] for key in weights if key.startswith(f"layer{i}.")}) for i in range(1, 5)]
    deep = "layer1.0.conv3.weight" in weights
    first = weights["layer1.0.conv1.weight"].shape[0]
    return ResNet(Bottleneck if deep else BasicBlock, blocks, width_per_group=first if deep else 64)
