"""The settings of an adapter inside a tower that stays as it is; what cannot be is told before torch has loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from dino_tower.errors import ConfigError, unknown
from dino_tower.peft_methods import METHODS
from dino_tower.pretrain.objectives.settings import weights

if TYPE_CHECKING:
    from dino_tower.pretrain.settings import Config

TOWER = "tower"  # the --arch that is whatever --init-from is
# terms that ask more of a backbone than to look at views, and why they cannot have it here
OTHERS = {
    "mae": "it looks at single patches, in a way of its own for each class",
    "ijepa": "it looks at single patches, in a way of its own for each class",
    "clip": "the text tower that it trains would be left behind",
}
WHOLE = "none"  # the method that is none: all of the backbone is trained


@dataclass(frozen=True)
class LoraConfig:
    """An adapter in the tower of --init-from (with --arch tower): only it and the heads are trained."""

    method: str = WHOLE
    """none: all of the backbone is trained; else lora, dora or another PEFT method that `adapt` knows."""
    rank: int | None = None
    """Its rank, or what plays that part; by default the method's own."""
    alpha: float | None = None
    """lora, dora, pissa, loha, lokr: the update is scaled by alpha / rank; by default they are equal."""
    modules: tuple[str, ...] = ()
    """Layers inside a block to adapt, as q_proj v_proj; by default those that suit the method."""


def check_lora(config: Config) -> None:
    """Raise ConfigError, naming the key, for an adapter that no run can have."""
    lora = config.lora
    if lora.method not in METHODS and lora.method != WHOLE:
        raise unknown("method", lora.method, [*METHODS, WHOLE], "lora.method")
    if lora.method == WHOLE:
        _check_whole(config)
        return
    if config.arch != TOWER:
        raise ConfigError(f"lora.method {lora.method} adapts the tower of --init-from as it is: set --arch {TOWER}, or "
                          "take --preset dino_lora")  # fmt: skip
    if not config.init_from:
        raise ConfigError(f"lora.method {lora.method}: --init-from TOWER is missing: the tower to adapt")
    if other := [name for name in OTHERS if name in weights(config)]:
        raise ConfigError(f"terms.{other[0]} does not go with an adapter: {OTHERS[other[0]]}; take --objective dino")
    for name in ("rank", "alpha"):
        value = getattr(lora, name)
        if value is not None and value <= 0:
            raise ConfigError(f"lora.{name} is {value}; it must be above 0")
    for field in fields(config.model):
        value = getattr(config.model, field.name)
        if value != (0 if field.name == "drop_path" else field.default):
            right = "set it to 0" if field.name == "drop_path" else "leave it out"
            raise ConfigError(f"model.{field.name} is {value}, but --arch {TOWER} takes the tower as it is: {right}")
    if config.optim.patch_embed_lr != 1:
        raise ConfigError(f"optim.patch_embed_lr is {config.optim.patch_embed_lr}, but an adapter leaves the patch "
                          "embedding as it is: set it to 1")  # fmt: skip


def _check_whole(config: Config) -> None:
    if config.arch == TOWER:
        raise ConfigError(f"--arch {TOWER} is for an adapter: set --lora.method lora, or name the architecture that "
                          "--init-from has")  # fmt: skip
    for name in ("rank", "alpha", "modules"):
        if getattr(config.lora, name) not in (None, ()):
            raise ConfigError(f"lora.{name} is given, but there is no adapter: set --lora.method lora, too")
