"""dino-tower: vision towers for multimodal models, pretrained on your own images by self-distillation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["export_tower", "load_tower"]

# In a checkout the rooms (pretrain, adapters, eval) sit beside this folder, in a wheel inside it.
_here = Path(__file__).parent
if __name__ == "dino_tower" and not (_here / "pretrain").is_dir():
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from dino_tower.export import export_tower
    from dino_tower.tower import load_tower


def __getattr__(name: str) -> Any:
    """Import torch only when a tower is asked for: `dino-tower --help` must not wait for it."""
    if name == "load_tower":
        from dino_tower.tower import load_tower

        return load_tower
    if name == "export_tower":
        from dino_tower.export import export_tower

        return export_tower
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
