"""What `dino-tower convert` is given: found out, read safely, and held as a native model beside its own forward."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel

from dino_tower.checkpoint import read_json
from dino_tower.checkpoint_files import backbone_weights, read_file, unsafe
from dino_tower.convert.forwards import of_dinov2, of_original, of_timm, of_vit, timm_architecture, timm_model
from dino_tower.convert.names_dino import Weights, original_to_native
from dino_tower.convert.names_timm import is_swiglu, native_to_timm, timm_to_native
from dino_tower.convert.names_vit import vit_to_native
from dino_tower.convert.shape import EPS, HEAD_WIDTH, native_model, shape_of
from dino_tower.errors import ConfigError
from dino_tower.export.same_features import Forward
from dino_tower.images import processor_for

PICKLED = (".pth", ".pt", ".bin", ".tar", ".ckpt")


@dataclass
class Source:
    """A ViT that was read. notes: what the user should know, one line each."""

    model: PreTrainedModel  # Dinov2Model or Dinov2WithRegistersModel
    processor: Any
    forward: Forward  # as the library that the weights came from computes it
    kind: str  # "dino", "dinov2", "timm", "vit", "native"
    notes: list[str] = field(default_factory=list)


def read_source(source: str | Path, network: str = "teacher", heads: int | None = None) -> Source:
    """Read a checkpoint file, or a directory of transformers, of timm, or in the original's layout.

    network: which of a training checkpoint. heads: attention heads, where nothing beside the weights tells.
    Raises ConfigError for what cannot be read, or is none of these ViTs.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise ConfigError(f"no checkpoint {str(source)!r}: a file or a directory is needed")
    if not path.is_dir():
        return _from_weights(path, read_file(path), network, heads, {})
    if (path / "checkpoints").is_dir():
        raise ConfigError(f"{path}: a run; `dino-tower export {path} OUT --format NAME` writes its tower")
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if "model_type" in config:
        return _from_transformers(path, str(config["model_type"]))
    if "architecture" in config:
        return _from_timm(path, config)
    file = _only_file(path)
    return _from_weights(file, read_file(file), network, heads or config.get("heads"), config)


def _only_file(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.suffix in (*PICKLED, ".safetensors") and p.is_file())
    if len(files) != 1:
        found = ", ".join(p.name for p in files) or "no weights"
        raise ConfigError(f"{folder}: has no config.json of transformers or timm, and {found} in it; name the file")
    return files[0]


def _from_transformers(folder: Path, model_type: str) -> Source:
    import transformers
    from transformers import Dinov2Model, Dinov2WithRegistersModel, ViTModel

    classes: dict[str, Any] = {
        "vit": ViTModel,
        "dinov2": Dinov2Model,
        "dinov2_with_registers": Dinov2WithRegistersModel,
    }
    if model_type not in classes:
        raise ConfigError(f"{folder}: a {model_type} of transformers; only {', '.join(classes)} convert")
    shown = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what is missing is our line to say
    try:
        model, info = classes[model_type].from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, weights_only=True, dtype=torch.float32
        )
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{folder}: {unsafe(error)}") from None
    except (OSError, ValueError, RuntimeError, SafetensorError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:240]}") from None
    finally:
        transformers.logging.set_verbosity(shown)
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    if missing:
        raise ConfigError(f"{folder}: the weights lack {', '.join(sorted(missing)[:3])}")
    if info["mismatched_keys"]:
        raise ConfigError(f"{folder}: the weights have other shapes than its config.json says")
    notes: list[str] = []
    if model_type != "vit":
        return Source(model.eval(), _processor(folder, model, notes), of_dinov2(model), "native", notes)
    weights = model.state_dict()
    native = _renamed(vit_to_native, weights, folder)
    eps = model.config.layer_norm_eps
    held = _held(native, model.config.num_attention_heads, eps, folder)
    if "pooler.dense.weight" in weights and "pooler.dense.weight" not in info["missing_keys"]:
        notes.append("the pooler was left out: a tower's answer is its tokens")
    return Source(held, _processor(folder, held, notes), of_vit(model.eval()), "vit", notes)


def _from_timm(folder: Path, config: Mapping[str, Any]) -> Source:
    file = next((folder / n for n in ("model.safetensors", "pytorch_model.bin") if (folder / n).is_file()), None)
    weights, notes = backbone_weights(read_file(file or _only_file(folder)), folder)
    arguments = {**config.get("model_args", {}), "num_classes": 0, "dynamic_img_size": True}
    model = timm_model(str(config["architecture"]), arguments, weights, str(folder))
    native = _renamed(timm_to_native, weights, folder)
    eps = float(model.norm.eps)
    held = _held(native, model.blocks[0].attn.num_heads, eps, folder)
    trained = config.get("pretrained_cfg", {})
    known = "mean" in trained and "std" in trained
    statistics = (tuple(trained["mean"]), tuple(trained["std"])) if known else None
    processor = _processor(folder, held, notes, statistics)
    if not (folder / "preprocessor_config.json").is_file():
        _prepare_as_timm(processor, trained)
    return Source(held, processor, of_timm(model), "timm", notes)


def _prepare_as_timm(processor: Any, trained: Mapping[str, Any]) -> None:
    """Resize and crop as timm's transforms_imagenet_eval does, where that cuts a square from the middle."""
    side, across = trained.get("input_size", (3, 0, 0))[1:]
    if side and side == across and trained.get("crop_mode", "center") == "center":
        processor.size = {"shortest_edge": int(side / trained.get("crop_pct", 0.875))}
        processor.crop_size = {"height": side, "width": side}
    if trained.get("interpolation", "").upper() in Image.Resampling.__members__:
        processor.resample = Image.Resampling[trained["interpolation"].upper()]


def _from_weights(file: Path, stored: Any, network: str, heads: int | None, config: Mapping[str, Any]) -> Source:
    weights, notes = backbone_weights(stored, file, network)
    if any(name.startswith(("embeddings.", "layers.")) for name in weights):
        raise ConfigError(f"{file}: weights of a transformers model; give the directory that has its config.json")
    from_timm = "reg_token" in weights or is_swiglu(weights)  # else its names are the original's
    native = _renamed(timm_to_native if from_timm else original_to_native, _with_mask_token(weights, notes), file)
    model = _held(native, heads, EPS, file)
    shape = shape_of(native, heads)
    if heads is None:
        notes.append(f"{shape.heads} attention heads were assumed (width / {HEAD_WIDTH}): --heads says otherwise")
    processor = _processor(file.parent if config else None, model, notes)
    if from_timm:
        name, arguments = timm_architecture(shape)
        forward = of_timm(timm_model(name, arguments, native_to_timm(native), str(file)))
        kind = "timm"
    else:
        forward = of_original(copy.deepcopy(model))
        kind = "dinov2" if "mask_token" in weights or shape.registers or shape.layerscale else "dino"
    return Source(model, processor, forward, kind, notes)


def _with_mask_token(weights: Weights, notes: list[str]) -> Weights:
    """iBOT calls its mask token by another name."""
    kept = {("mask_token" if name == "masked_embed" else name): value for name, value in weights.items()}
    if "masked_embed" in weights:
        notes.append("masked_embed became the mask token")
    return kept


def _renamed(rename: Callable[[Mapping[str, Tensor]], Weights], weights: Mapping[str, Tensor], where: Path) -> Weights:
    try:
        return rename({name: value.float() for name, value in weights.items()})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _held(native: Weights, heads: int | None, eps: float, where: Path) -> PreTrainedModel:
    try:
        return native_model(native, shape_of(native, heads), eps)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _processor(
    folder: Path | None, model: PreTrainedModel, notes: list[str], statistics: tuple[Any, Any] | None = None
) -> Any:
    """The saved processor, or one for the native size with the mean and std that are known, else ImageNet's.

    One that does not cut a square is replaced: a VLM's processor reads crop_size to count image tokens.
    """
    size, patch = model.config.image_size, model.config.patch_size
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        try:
            saved = AutoImageProcessor.from_pretrained(folder)
        except (OSError, ValueError, LookupError, TypeError, ImportError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"{folder}: preprocessor_config.json cannot be read: {reason}") from None
        if getattr(saved, "crop_size", None):
            return saved
        statistics = tuple(saved.image_mean), tuple(saved.image_std)
        notes.append(f"its processor cut no square: one that resizes and cuts {size} x {size} was written")
    if statistics is None:
        notes.append("ImageNet's mean and std were assumed: nothing beside the weights tells")
        return processor_for(size, patch)
    return processor_for(size, patch, *statistics)
