"""The settings of the two objectives that encode some patches of a picture and predict the others: mae and ijepa."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dino_tower.errors import ConfigError

if TYPE_CHECKING:
    from dino_tower.pretrain.settings import Config


@dataclass(frozen=True)
class MaeConfig:
    """The masked autoencoder: what is hidden, and the decoder that paints it."""

    ratio: float = 0.75
    """Share of the patches that is hidden."""
    normalise: bool = True
    """Paint each patch by its own pixels' mean and standard deviation."""
    width: int = 512
    """Features of the decoder."""
    depth: int = 8
    """Its blocks."""
    heads: int = 16


@dataclass(frozen=True)
class IjepaConfig:
    """Prediction of features: the blocks of the picture, and what predicts."""

    targets: int = 4
    """Blocks to predict."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Least and largest area of one, as a share of the picture."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Its height / width."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Area of the square that is seen, before the targets are taken off."""
    least: int = 10
    """Patches that are to be left of it."""
    width: int = 384
    """Features of the predictor."""
    depth: int = 12
    """Its blocks."""
    heads: int = 12


def kept_patches(patches: int, ratio: float) -> int:
    """How many of so many patches are seen where a share is hidden (mae/models_mae.py::random_masking)."""
    return int(patches * (1 - ratio) + 1e-6)  # 0.9 of ten leave one, which floats would round down to none


def _grid(config: Config) -> int | None:
    """Patches along a side of a global view; none for an architecture that no ViT is called by."""
    match = re.match(r"vit[a-z]+(\d+)", config.arch)
    return config.crops.global_size // int(match[1]) if match else None


def _check_predictor(config: Config, name: str, width: int, depth: int, heads: int) -> None:
    """What mae and ijepa have in common: an encoder of single patches, and a small transformer."""
    if config.arch.startswith("resnet"):
        raise ConfigError(f"terms.{name} encodes some patches alone, which {config.arch} cannot: take vits16 or "
                          "another ViT")  # fmt: skip
    for key, value in (("width", width), ("depth", depth), ("heads", heads)):
        if value <= 0:
            raise ConfigError(f"{name}.{key} is {value}; it must be above 0")
    if width % heads or width % 4:
        raise ConfigError(f"{name}.width is {width}; it must be a multiple of {name}.heads {heads} and of 4")


def check_mae(config: Config) -> None:
    """Raise ConfigError, naming the key, for a masked autoencoder that cannot be."""
    mae, side = config.mae, _grid(config)
    _check_predictor(config, "mae", mae.width, mae.depth, mae.heads)
    if not 0 < mae.ratio < 1:
        raise ConfigError(f"mae.ratio is {mae.ratio}; give a share between 0 and 1")
    if side is not None and not 0 < kept_patches(side**2, mae.ratio) < side**2:
        raise ConfigError(f"mae.ratio {mae.ratio} of {side} x {side} patches leaves nothing to see or to paint: change "
                          "it, or enlarge crops.global_size")  # fmt: skip


def check_ijepa(config: Config) -> None:
    """Raise ConfigError, naming the key, for blocks or a predictor that cannot be."""
    c, side = config.ijepa, _grid(config)
    _check_predictor(config, "ijepa", c.width, c.depth, c.heads)
    if c.targets <= 0 or c.least <= 0:
        raise ConfigError(f"ijepa.targets is {c.targets} and ijepa.least {c.least}; they must be above 0")
    for key, (low, high) in (("target_scale", c.target_scale), ("context_scale", c.context_scale)):
        if not 0 < low <= high <= 1:
            raise ConfigError(f"ijepa.{key} is {(low, high)}; give two shares of 0 to 1, the lower first")
    if not 0 < c.target_aspect[0] <= c.target_aspect[1]:
        raise ConfigError(f"ijepa.target_aspect is {c.target_aspect}; give height / width, the lower first")
    if c.targets * c.target_scale[1] >= c.context_scale[0]:
        raise ConfigError(f"ijepa.targets {c.targets} of {c.target_scale[1]} can cover the whole context of "
                          f"{c.context_scale[0]}: lower ijepa.targets or ijepa.target_scale")  # fmt: skip
    if side is not None and side < 4:
        raise ConfigError(f"terms.ijepa needs 4 x 4 patches or more, and {config.arch} has {side} x {side} of a view: "
                          "enlarge crops.global_size")  # fmt: skip
