"""Towers of other libraries: `timm:NAME`, `torchvision:NAME`, and the published checkpoints of ResNets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF
from transformers import BatchFeature

from dino_tower.errors import ConfigError, unknown
from dino_tower.families import family_of
from dino_tower.loading import Loaded

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}
INTERPOLATION = {resample: InterpolationMode(name) for name, resample in RESAMPLING.items()}
DEFAULT = "DEFAULT"  # torchvision's name of the best weights a model has


def load_timm(what: str, name: str, untrained: bool) -> Loaded:
    """`what` is a model name of timm with or without its tag, a directory of timm's format, or hf-hub:OWNER/NAME.

    ViTs are built with dynamic_img_size, so that they take any size. Raises ConfigError.
    """
    import timm

    source = f"local-dir:{what}" if Path(what).is_dir() else what
    if ":" not in source and not timm.is_model(what):
        raise _nearest(name, "timm model", what.split(".")[0], timm.list_models())
    tags = timm.list_pretrained(f"{what.split('.')[0]}.*") if ":" not in source else []
    if "." in what and tags and what not in tags:
        raise _nearest(name, "timm weights", what, tags)
    try:
        try:
            model = timm.create_model(source, pretrained=not untrained, num_classes=0, dynamic_img_size=True)
        except TypeError:  # most of timm's classes do not know the word
            model = timm.create_model(source, pretrained=not untrained, num_classes=0)
    except Exception as error:  # the Hub, the files and the models fail each in their own way
        raise ConfigError(f"{name}: {_reason(error)}") from None
    family_of(model)
    return Loaded(model, _timm_processor(timm.data.resolve_model_data_config(model), name))


def load_torchvision(what: str, name: str, untrained: bool) -> Loaded:
    """`what` is MODEL or MODEL:WEIGHTS of torchvision, as in resnet50:IMAGENET1K_V1. Raises ConfigError."""
    from torchvision import models

    kind, _, chosen = what.partition(":")
    if kind not in models.list_models(module=models):
        raise _nearest(name, "torchvision model", kind, models.list_models(module=models))
    known = models.get_model_weights(kind)
    names = [weights.name for weights in known]
    if chosen and chosen not in names:
        raise unknown("torchvision weights", chosen, names, name)
    weights = known[chosen or DEFAULT]
    transforms = weights.transforms()
    # A ViT is built for one size, which is not the same for all weights of its name.
    sized = {"image_size": transforms.crop_size[0]} if kind.startswith("vit_") else {}
    model = models.get_model(kind, weights=None, num_classes=len(weights.meta["categories"]), **sized)
    family_of(model)
    if not untrained:
        try:
            model.load_state_dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except Exception as error:  # the network, the disk and the file fail each in their own way
            raise ConfigError(f"{name}: {_reason(error)}") from None
    processor = PilProcessor(
        {"shortest_edge": transforms.resize_size[0]},
        {"height": transforms.crop_size[0], "width": transforms.crop_size[0]},
        transforms.mean,
        transforms.std,
        RESAMPLING[transforms.interpolation.value],
    )
    return Loaded(model, processor)


@dataclass
class PilProcessor:
    """An image processor of transformers' interface that does, to the bit, what timm and torchvision do with a picture.

    size: {"shortest_edge": n} or both edges {"height": h, "width": w}; crop_size: what is cut from the middle; pixels.
    """

    size: dict[str, int]
    crop_size: dict[str, int]
    image_mean: list[float]
    image_std: list[float]
    resample: Image.Resampling

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image],
        return_tensors: str = "pt",
        do_resize: bool = True,
        do_center_crop: bool = True,
        do_rescale: bool = True,
        do_normalize: bool = True,
    ) -> BatchFeature:
        """`pixel_values` [B, 3, H, W], which is all that `return_tensors` could be here."""
        pictures = [images] if isinstance(images, Image.Image) else images
        parts = []
        for picture in pictures:
            image = picture.convert("RGB")
            if do_resize:
                image = TF.resize(image, list(self.size.values()), INTERPOLATION[self.resample])
            if do_center_crop:
                image = TF.center_crop(image, list(self.crop_size.values()))
            pixels = TF.pil_to_tensor(image).float()
            pixels = pixels / 255 if do_rescale else pixels
            parts.append(TF.normalize(pixels, self.image_mean, self.image_std) if do_normalize else pixels)
        return BatchFeature({"pixel_values": torch.stack(parts)})


def _timm_processor(data: dict[str, Any], name: str) -> PilProcessor:
    """timm/data/transforms_factory.py::transforms_imagenet_eval."""
    _, height, width = data["input_size"]
    if data["crop_mode"] == "border":
        raise ConfigError(f"{name}: its pictures are padded to a border (crop_mode border), which is not supported")
    scaled = {"height": int(height / data["crop_pct"]), "width": int(width / data["crop_pct"])}
    squash = data["crop_mode"] == "squash" or height != width
    return PilProcessor(
        scaled if squash else {"shortest_edge": scaled["height"]},
        {"height": height, "width": width},
        list(data["mean"]),
        list(data["std"]),
        RESAMPLING.get(data["interpolation"], Image.Resampling.BICUBIC),  # "random" means any
    )


def _nearest(name: str, kind: str, value: str, choices: list[str]) -> ConfigError:
    """These libraries have hundreds of names: show the nearest ones only."""
    near = get_close_matches(value, choices, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"the library lists {len(choices)} names"
    return ConfigError(f"{name}: no {kind} {value!r}; {hint}")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    offline = ("cannot find the requested files", "urlopen error", "offline mode", "Name or service not known")
    if any(sign in text for sign in offline):
        return "its weights are not on this machine and cannot be fetched (no network); random: in front needs none"
    return f"cannot be loaded as a tower: {text}"
