"""The layouts that a tower is written in: each writes a directory, and opens what it wrote as strangers would.

native, vit, timm, dino and dinov2 are here; onnx, heads and text have files of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from dino_tower.checkpoint import load_tensors, read_json
from dino_tower.checkpoint_files import read_file
from dino_tower.convert.forwards import of_original, of_timm, of_vit, timm_architecture, timm_model
from dino_tower.convert.names_dino import native_to_original, original_to_native
from dino_tower.convert.names_timm import native_to_timm
from dino_tower.convert.names_vit import native_to_vit
from dino_tower.convert.shape import Shape, fold_layerscale, native_model, shape_of
from dino_tower.errors import ConfigError, unknown
from dino_tower.export.heads import open_heads, write_heads
from dino_tower.export.onnx_graph import open_onnx, write_onnx
from dino_tower.export.same_features import Forward, forward_of
from dino_tower.export.with_text import open_text, write_text
from dino_tower.tower import Tower, load_tower

DINOV2 = ("dinov2", "dinov2_with_registers")
ORIGINAL_FILE = "backbone.pth"
FOLDED = "LayerScale was multiplied into the layers before it: this layout has none"
BY_SCALE = "DINO's own code resizes positions by scale factor + 0.1, this tower by size"
ANTIALIASED = "timm resizes positions with antialiasing, this tower without"


@dataclass(frozen=True)
class Format:
    """One layout.

    write: tower, folder, run (None for a conversion) -> notes for the user. open: the written folder and the tower's
    processor -> its forward, everything loaded strictly. holds: model types of transformers it has names for, None for
    all. swiglu: whether it has names for a SwiGLU. tolerance: of the features. resized: why other sizes than the native
    one differ by design, given the tower; empty where they must not.
    """

    write: Callable[[Tower, Path, Path | None], list[str]]
    open: Callable[[Path, Tower], Forward]
    holds: tuple[str, ...] | None = None
    swiglu: bool = True
    tolerance: float = 1e-5
    resized: Callable[[Tower], str] = lambda tower: ""


def write_native(tower: Tower, folder: Path, checkpoint: Path | None = None) -> list[str]:
    """Config, safetensors and image processor. CLIP and SigLIP towers get the names that serving engines read."""
    tower.model.save_pretrained(folder)
    tower.processor.save_pretrained(folder)
    if _type(tower) not in ("clip_vision_model", "siglip_vision_model"):
        return []
    # transformers 5 saves these two without the prefix and reads both; vLLM and older loaders know the prefixed names
    weights = load_tensors(folder / "model.safetensors")
    prefixed = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in weights.items()}
    save_file(prefixed, folder / "model.safetensors", metadata={"format": "pt"})
    return []


def open_native(folder: Path, tower: Tower) -> Forward:
    return forward_of(load_tower(folder))


def write_vit(tower: Tower, folder: Path, checkpoint: Path | None = None) -> list[str]:
    """A ViTModel of transformers, with a pooler that hands the class token on."""
    from transformers import ViTConfig, ViTModel

    native, shape, notes = _native(tower, folds=True)
    config = ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.width * shape.mlp_ratio,
        image_size=shape.image_size,
        patch_size=shape.patch,
        qkv_bias=shape.qkv_bias,
        layer_norm_eps=tower.model.config.layer_norm_eps,
        pooler_act="linear",
    )
    model = ViTModel(config)
    model.load_state_dict(native_to_vit(native), strict=True)
    model.save_pretrained(folder)
    tower.processor.save_pretrained(folder)
    return notes


def open_vit(folder: Path, tower: Tower) -> Forward:
    from transformers import AutoModel

    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    if odd := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise ConfigError(f"{folder}: the ViTModel that was written lacks or has too many weights: {sorted(odd)[:3]}")
    return of_vit(model.eval())


def write_timm(tower: Tower, folder: Path, checkpoint: Path | None = None) -> list[str]:
    """What timm.create_model("local-dir:OUT", pretrained=True) reads: config.json and model.safetensors."""
    native, shape, notes = _native(tower, folds=False)
    name, arguments = timm_architecture(shape)
    save_file(_contiguous(native_to_timm(native)), folder / "model.safetensors", metadata={"format": "pt"})
    processor = tower.processor
    side, edge = _crop_and_edge(processor, shape.image_size)
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": shape.width,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "interpolation": Image.Resampling(processor.resample).name.lower(),
            "crop_pct": side / (edge + 0.5),  # timm rounds side / crop_pct down: this gives the edge
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return notes


def _crop_and_edge(processor: Any, native: int) -> tuple[int, int]:
    """Pixels of the square that timm is to cut, and of the shorter edge that it first resizes to.

    Half a pixel of margin is rounded down by transformers and to the even number by timm: from the edge 55 they cut 48
    pixels one pixel apart. There the edge is made a pixel shorter, which is half a pixel off on average, not one.
    """
    side = (getattr(processor, "crop_size", None) or {}).get("height") or native
    edge = processor.size.get("shortest_edge") or side
    margin = (edge - side) / 2
    return side, edge - (round(margin) - int(margin))


def open_timm(folder: Path, tower: Tower) -> Forward:
    config = read_json(folder / "config.json")
    weights = load_tensors(folder / "model.safetensors")
    return of_timm(timm_model(config["architecture"], config["model_args"], weights, str(folder)))


def write_dino(tower: Tower, folder: Path, checkpoint: Path | None = None) -> list[str]:
    """The original DINO code's state dict, in the one file format that its torch.load reads."""
    return _write_original(tower, folder, "dino")


def write_dinov2(tower: Tower, folder: Path, checkpoint: Path | None = None) -> list[str]:
    """The original DINOv2 code's state dict: also LayerScale, registers, SwiGLU and the mask token."""
    return _write_original(tower, folder, "dinov2")


def _write_original(tower: Tower, folder: Path, layout: str) -> list[str]:
    native, shape, notes = _native(tower, folds=layout == "dino")
    weights = native_to_original(native)
    if layout == "dino" and weights.pop("mask_token", None) is not None:
        notes.append("the mask token was left out: DINO has none")
    if layout == "dinov2":  # its module has both, whatever they hold
        weights["mask_token"] = native["embeddings.mask_token"].clone()
        for i in range(shape.depth):
            for k in (1, 2):
                weights[f"blocks.{i}.ls{k}.gamma"] = native[f"encoder.layer.{i}.layer_scale{k}.lambda1"].clone()
    # plain tensors: readable with weights_only=True, and the only thing the original's scripts can load
    try:
        torch.save(_contiguous(weights), folder / ORIGINAL_FILE)
    except RuntimeError:  # PyTorch's archive writer says where it stood, not why it stopped
        raise OSError(f"{ORIGINAL_FILE} could only be written in part: is the disk full?") from None
    facts = {
        "layout": layout,
        "width": shape.width,
        "depth": shape.depth,
        "heads": shape.heads,
        "patch": shape.patch,
        "image_size": shape.image_size,
        "mlp_ratio": shape.mlp_ratio,
        "registers": shape.registers,
        "swiglu": shape.swiglu,
    }
    (folder / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    tower.processor.save_pretrained(folder)
    return notes


def open_original(folder: Path, tower: Tower) -> Forward:
    native = original_to_native(read_file(folder / ORIGINAL_FILE))
    heads = read_json(folder / "config.json")["heads"]
    return of_original(native_model(native, shape_of(native, heads), tower.model.config.layer_norm_eps))


def _native(tower: Tower, folds: bool) -> tuple[Mapping[str, Tensor], Shape, list[str]]:
    """The tower's weights and sizes; with LayerScale multiplied in where the layout has no place for it."""
    native = {name: value.detach().cpu().float() for name, value in tower.model.state_dict().items()}
    if "embeddings.mask_token" not in native:
        native["embeddings.mask_token"] = torch.zeros(1, tower.model.config.hidden_size)
    shape = shape_of(native, tower.model.config.num_attention_heads)
    if folds and shape.layerscale:
        return fold_layerscale(native), shape, [FOLDED]
    return native, shape, []


def _contiguous(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name].contiguous() for name in sorted(weights)}


def _type(tower: Tower) -> str:
    return str(getattr(getattr(tower.model, "config", None), "model_type", type(tower.model).__name__))


def _without_registers(reason: str) -> Callable[[Tower], str]:
    return lambda tower: "" if _type(tower) == "dinov2_with_registers" else reason


FORMATS: dict[str, Format] = {
    "native": Format(write_native, open_native, tolerance=0.0),
    "vit": Format(write_vit, open_vit, holds=("dinov2",), swiglu=False),
    "timm": Format(write_timm, open_timm, holds=DINOV2, resized=_without_registers(ANTIALIASED)),
    "dino": Format(write_dino, open_original, holds=("dinov2",), swiglu=False, resized=lambda tower: BY_SCALE),
    "dinov2": Format(write_dinov2, open_original, holds=DINOV2, resized=_without_registers(BY_SCALE)),
    "onnx": Format(write_onnx, open_onnx, tolerance=1e-4),
    "heads": Format(write_heads, open_heads, tolerance=0.0),
    "text": Format(write_text, open_text, tolerance=0.0),
}
CONVERSIONS = ("native", "vit", "timm", "dino", "dinov2")


def find_format(name: str, tower: Tower, choices: Iterable[str] = FORMATS) -> Format:
    """The format of that name; ConfigError for one that is not in `choices` and for one that cannot hold this tower."""
    if name not in choices:
        raise unknown("format", name, choices)
    kind, config = FORMATS[name], tower.model.config
    fitting = [n for n in choices if FORMATS[n].holds is None or _type(tower) in (FORMATS[n].holds or ())]
    if kind.holds is not None and _type(tower) not in kind.holds:
        registers = _type(tower) == "dinov2_with_registers"
        what = "the registers of this tower" if registers else f"a {type(tower.model).__name__}"
        raise ConfigError(f"format {name} has no place for {what}; choices: {', '.join(fitting)}")
    if not kind.swiglu and getattr(config, "use_swiglu_ffn", False):
        fitting = [n for n in fitting if FORMATS[n].swiglu]
        raise ConfigError(f"format {name} has no place for the SwiGLU of this tower; choices: {', '.join(fitting)}")
    return kind
