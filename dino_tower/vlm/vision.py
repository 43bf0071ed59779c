"""The side of the tower: what a client has to know of it, read from its config and its image processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_tower.errors import ConfigError, unknown
from dino_tower.vlm.facts import LAYOUTS, Layout


@dataclass(frozen=True)
class Vision:
    """A tower in numbers.

    image_size: the native size in pixels; crop: what its processor cuts, None where there is no processor.
    pooled: it gives one vector a picture. mean, std: of its processor. cls: it has a class token.
    per_place: tokens for each place of the grid, more than one where a fused tower interleaves those of several.
    """

    family: str
    patch: int
    image_size: int
    width: int
    depth: int
    registers: int
    pooled: bool
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    cls: bool = True
    per_place: int = 1

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.family]

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches: the class token and the registers."""
        return int(self.cls) + self.registers

    def named(self, count: int) -> str:
        """The last `count` tokens of the prefix in words: `4 registers`, `the class token and 4 registers`."""
        parts = ["the class token"] * (count > self.registers) + [f"{self.registers} registers"] * (self.registers > 0)
        return " and ".join(parts)


def vision_of(tower: Any) -> Vision:
    """Read a Tower, a vision model or config of transformers, or a TOWER by name (a directory, `RUN@teacher`, ...).

    Raises ConfigError for a family that is not in LAYOUTS and for a name that cannot be read.
    """
    config, processor = _config_and_processor(tower)
    family = getattr(config, "model_type", type(tower).__name__)
    if family not in LAYOUTS:
        raise unknown("ViT family that VLMs take", family, LAYOUTS)
    crop = getattr(processor, "crop_size", None)
    head = getattr(config, "vision_use_head", True)  # SigLIP's; without it there is no pooled vector
    return Vision(
        family=family,
        patch=_side(config.patch_size),
        image_size=_side(config.image_size),
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        registers=getattr(config, "num_register_tokens", 0),
        pooled=head and family != "ijepa",
        crop=crop["height"] if crop else None,
        mean=_numbers(getattr(processor, "image_mean", None)),
        std=_numbers(getattr(processor, "image_std", None)),
        cls=getattr(config, "class_token", LAYOUTS[family].cls),  # a fused tower has one or none
        per_place=getattr(config, "tokens_per_place", 1),
    )


def weights_of(tower: Any) -> Any:
    """The state dict of a Tower or a model, None for what has no weights in memory."""
    model = tower.model if hasattr(tower, "processor") else tower
    return model.state_dict() if hasattr(model, "state_dict") else None


def _config_and_processor(tower: Any) -> tuple[Any, Any]:
    if isinstance(tower, (str, Path)):
        return _read(str(tower))
    if hasattr(tower, "processor"):  # a Tower, whose model need not be of transformers
        return getattr(tower.model, "config", None), tower.processor
    return getattr(tower, "config", tower), None


def _read(name: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoImageProcessor

    from dino_tower.tower import find, load_tower

    folder = name if name.startswith("random:") or _is_adapter(name) else find(name)
    if folder.startswith("random:") or _is_adapter(folder):
        return _config_and_processor(load_tower(name))
    try:
        return AutoConfig.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be read as a tower: {' '.join(str(error).split())[:300]}") from None


def _is_adapter(folder: str) -> bool:
    """It has no config.json of its own: what the tower is, its base says."""
    return (Path(folder) / "base.json").is_file()


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
