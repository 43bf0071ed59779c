"""dino-tower: vision towers for multimodal models, pretrained on your own images by self-distillation."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["check_vlm", "export_tower", "image_tokens_for", "load_tower"]

# In a checkout the rooms (pretrain, adapters, eval) sit beside this folder, in a wheel inside it.
_here = Path(__file__).parent
if __name__ == "dino_tower" and not (_here / "pretrain").is_dir():
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from dino_tower.export.writing import export_tower
    from dino_tower.tower import load_tower
    from dino_tower.vlm import check_vlm, image_tokens_for


# public name -> the module it is imported from when it is first asked for
_LATER = {
    "load_tower": "tower",
    "export_tower": "export.writing",
    "check_vlm": "vlm",
    "image_tokens_for": "vlm",
}


def __getattr__(name: str) -> Any:
    """Import torch only when a tower is asked for: `dino-tower --help` must not wait for it."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
