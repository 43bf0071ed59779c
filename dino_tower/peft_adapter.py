"""A tower with a PEFT adapter on it: wrap, save beside the name of its base, load onto the same base, merge.

An adapter's folder holds what `peft.PeftModel.from_pretrained(base, folder)` reads (adapter_config.json and
adapter_model.safetensors) and base.json, which names the tower it belongs to.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from dino_tower.checkpoint import load_tensors, read_json, save_tensors
from dino_tower.errors import ConfigError
from dino_tower.families.family import Model
from dino_tower.finding import find
from dino_tower.loading import Loaded
from dino_tower.peft_layers import PLAIN
from dino_tower.peft_methods import PeftSettings, peft_config

WEIGHTS, SETTINGS, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
MERGED = "merged"  # folder of a plain tower beside an adapter
FORMAT = 1  # of base.json


@dataclass(frozen=True)
class Base:
    """The tower that an adapter belongs to. digest: of its weights, which tells it from every other tower."""

    tower: str  # TOWER, as it was asked for
    path: str  # its directory, "" where it has none (timm:NAME, random:ARCHITECTURE)
    digest: str
    method: str


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights, names and shapes; buffers that are no weights do not count."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def wrap(model: Model, method: str, settings: PeftSettings | None = None, seed: int = 0) -> peft.PeftModel:
    """Put a fresh adapter on a tower's model, which is changed in place; only the adapter asks for gradients.

    The tower's features stay what they were, up to rounding: adapters start as nothing. The caller's random state is
    left alone. Raises ConfigError for what cannot work (see `peft_config`).
    """
    config = peft_config(model, method, settings or PeftSettings())
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of default settings that are set on purpose
        torch.manual_seed(seed)
        return _wrapped(model, config)


def _wrapped(model: Model, config: peft.PeftConfig) -> peft.PeftModel:
    made: Any = peft.get_peft_model(model, config)
    return made


def inner(adapted: nn.Module) -> Model:
    """The tower's own model inside a PeftModel, its adapters at work: what `dino_tower.tokens` reads. Or the model."""
    return adapted.get_base_model() if isinstance(adapted, peft.PeftModel) else adapted


def adapter_weights(adapted: peft.PeftModel) -> dict[str, Tensor]:
    """What is saved of an adapter, by the names that `peft` reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks on the Hub whether the base has another vocabulary
        weights: dict[str, Tensor] = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return weights


def adapter_writer(adapted: peft.PeftModel, base: Base, home: Path | None = None) -> Callable[[Path], None]:
    """Copy the adapter now; the returned function writes the copy into a folder, whenever it is called.

    home: where that folder will be in the end, if not at the depth where it is written. The base's path is written
    relative to it: both can be moved together.
    """
    weights = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in adapter_weights(adapted).items()}
    settings = copy.deepcopy(adapted.peft_config["default"])
    settings.inference_mode = True
    kind = type(adapted.get_base_model())
    auto = {"base_model_class": kind.__name__, "parent_library": kind.__module__}  # AutoPeftModel finds the class by it

    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        settings.base_model_name_or_path = _relative(base, home or folder) or base.tower
        save_tensors(folder / WEIGHTS, weights)
        settings.save_pretrained(str(folder), auto_mapping_dict=auto)
        base_writer(base, home or folder)(folder)

    return write


def base_writer(base: Base, home: Path) -> Callable[[Path], None]:
    """Writes base.json, for a folder that will be `home` in the end."""
    facts = {"format": FORMAT, **asdict(base), "path": _relative(base, home)}

    def write(folder: Path) -> None:
        (folder / BASE).write_text(json.dumps(facts, indent=1) + "\n")

    return write


def _relative(base: Base, home: Path) -> str:
    return os.path.relpath(Path(base.path).resolve(), home.resolve()) if base.path else ""


def base_path(name: str) -> str:
    """The directory behind a TOWER that is adapted, "" where it has none of its own."""
    if name.split(":")[0] in ("timm", "torchvision", "random") or Path(name).is_file():
        return ""
    # of a tower that is an adaptation itself, what other software can load
    found = Path(name)
    if not (found / BASE).is_file():
        found = Path(find(name))
        if not (found / BASE).is_file():
            return str(found) if found.is_dir() else ""
        if found.name != "student":  # of RUN/checkpoints/step-N; the teacher is merged nowhere
            return ""
        found = found.parents[2]
    return str(found / MERGED) if (found / MERGED).is_dir() else ""


def read_base(folder: Path) -> Base:
    """The tower an adapter belongs to. Raises ConfigError for a folder that lacks a file of an adapter."""
    facts = read_json(folder / BASE) if (folder / BASE).is_file() else {"method": ""}
    for name in (BASE,) if facts.get("method") in PLAIN else (SETTINGS, WEIGHTS, BASE):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: no adapter: it has no {name}")
    if facts.get("format") != FORMAT:
        raise ConfigError(f"{folder / BASE}: format {facts.get('format')}; this version reads format {FORMAT}")
    return Base(**{key: str(facts.get(key, "")) for key in Base.__dataclass_fields__})


def base_directory(base: Base, folder: Path) -> str:
    """The TOWER of an adapter in `folder`: its directory beside the adapter where that is there, else as asked for."""
    beside = folder / base.path
    return str(beside) if base.path and beside.is_dir() else base.tower


def load_adapter(model: Model, folder: Path, name: str = "the tower", trainable: bool = False) -> peft.PeftModel:
    """Put the adapter in `folder` on a tower's model, in place; its weights are then what they were, bit for bit.

    Raises ConfigError where the tower is another one than the adapter was trained on, and for damaged files.
    """
    base = read_base(folder)
    if weights_digest(model) != base.digest:
        raise ConfigError(f"{folder}: an adapter for {base.tower}, not for {name}: the weights below it are others")
    try:
        config: Any = peft.PeftConfig.from_pretrained(str(folder))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config.inference_mode = not trainable
            adapted = _wrapped(model, config)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{folder / SETTINGS}: not what peft reads: {' '.join(str(error).split())[:200]}") from None
    load_adapter_weights(adapted, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return adapted


def load_adapter_weights(adapted: peft.PeftModel, weights: dict[str, Tensor], where: Path) -> None:
    """Put saved weights into an adapter; ConfigError unless they are exactly its own by name and shape."""
    own = {name: value.shape for name, value in adapter_weights(adapted).items()}
    odd = sorted(set(own) ^ set(weights)) or sorted(n for n in own if own[n] != weights[n].shape)
    if odd:
        raise ConfigError(f"{where}: not this adapter's weights: {odd[0]} is missing, unknown or of another shape")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.set_peft_model_state_dict(adapted, weights)


def open_adapted(folder: Path, name: str, open_tower: Callable[[str, torch.dtype | None], Loaded]) -> Loaded:
    """The plain tower that an adapter's folder stands for: its base with the adapter merged in, in memory and float32.

    Raises ConfigError where the base is not the one that the adapter was trained on.
    """
    loaded = open_tower(tower_below(folder), torch.float32)  # as when the adapter was trained
    if read_base(folder).method in PLAIN:
        return loaded
    return Loaded(merged(load_adapter(loaded.model, folder, name)), loaded.processor)


def tower_below(folder: Path) -> str:
    """The TOWER that a run's adapter is put on; of one that was trained as a whole, what came out."""
    base = read_base(folder)
    return merged_tower(folder) if base.method == "full" else base_directory(base, folder)


def merged_tower(folder: Path) -> str:
    """The TOWER of the merged directory beside an adapter: transformers', or timm's. Raises ConfigError."""
    path = folder / MERGED
    if not (path / "config.json").is_file():
        raise ConfigError(f"{folder}: the tower that was trained as a whole is gone: no {MERGED}/config.json")
    return f"timm:{path}" if '"pretrained_cfg"' in (path / "config.json").read_text(errors="replace") else str(path)


def merged(adapted: peft.PeftModel) -> Model:
    """A plain model of the tower's own class with the adapter in its weights. `adapted` stays as it is."""
    twin: Any = copy.deepcopy(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain: Model = twin.merge_and_unload()
    if hasattr(plain, "peft_config"):
        del plain.peft_config  # else the next adapter would be taken for a second one
    return plain.eval()
