"""An adapter melted into its tower, written as a plain tower that any client loads without `peft`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from torch import Tensor

from dino_tower.export.formats import FORMATS
from dino_tower.export.model_card import Facts, model_card
from dino_tower.export.same_features import Forward, Gap, compare, forward_of, native_size, refuse_if_different
from dino_tower.export.writing import check_crop, snippets_for, without_progress_bars, write_new, write_tower
from dino_tower.families import family_name
from dino_tower.peft_adapter import inner, merged
from dino_tower.tokens import Tokens, tokens
from dino_tower.tower import Tower, load_tower

TOLERANCE = 2e-6  # of the largest feature: rounding of the sum of two weights, and what the blocks make of it


def write_merged(
    tower: Tower, adapted: torch.nn.Module, out: Path, origin: str, say: Callable[[str], object] = lambda line: None
) -> float:
    """Write the plain tower to the new directory `out`; returns the largest difference to the adapted features.

    tower: the one that was adapted, for its processor and name. adapted: a PeftModel, or the tower's model itself where
    all of it was trained. origin: a sentence for the model card. A tower of transformers becomes a directory of its own
    class, one of timm a `timm:DIR`. Raises ConfigError, and writes nothing, where the features differ by more than
    TOLERANCE of the largest, or where the disk refuses.
    """
    plain = merged(adapted) if isinstance(adapted, peft.PeftModel) else copy.deepcopy(adapted).eval()
    result = Tower(plain.cpu().float(), tower.processor, tower.name)
    gap = _largest_gap(result, adapted)
    if family_name(plain).startswith("timm "):
        _write_timm(result, out, origin)
    else:
        _write_native(result, out, origin, say)
    return gap


@torch.no_grad()
def _largest_gap(result: Tower, adapted: torch.nn.Module) -> float:
    """Against the adapted tower in float64, which has no rounding of its own to speak of."""
    exact = copy.deepcopy(adapted).cpu().double().eval()
    wide = copy.deepcopy(result.model).double()
    size = _native(result)
    only_native = result.native is not None
    gaps = compare(_forward(exact), _forward(wide), result.processor, size, result.patch, only_native)
    return refuse_if_different(gaps, TOLERANCE, other_sizes=True)


def _forward(model: torch.nn.Module) -> Forward:
    def forward(pixels: Tensor) -> Tokens:
        return tokens(inner(model), pixels.double())

    return forward


def _native(tower: Tower) -> tuple[int, int]:
    if tower.native is not None:
        return tower.native
    if hasattr(tower.model, "config"):
        return native_size(tower.model, tower.processor, tower.patch)
    height, width = tower.model.patch_embed.img_size
    return height, width


def _write_native(tower: Tower, out: Path, origin: str, say: Callable[[str], object]) -> None:
    check_crop(tower)

    def card(gaps: list[Gap], notes: list[str], folder: Path) -> str:
        snippets = snippets_for(tower, "native", out.name, folder)
        return model_card(tower, Facts(out.name, "native", snippets, origin, None, notes, [str(gap) for gap in gaps]))

    write_tower(tower, forward_of(tower), out, "native", card, say=say, choices=FORMATS)


def _write_timm(tower: Tower, out: Path, origin: str) -> None:
    from timm.models import save_for_hf

    def fill(folder: Path) -> None:
        save_for_hf(tower.model, str(folder), safe_serialization=True)
        with without_progress_bars():
            written = load_tower(f"timm:{folder}")
        gaps = compare(
            forward_of(tower), forward_of(written), tower.processor, _native(tower), tower.patch,
            only_native=tower.native is not None,
        )  # fmt: skip
        refuse_if_different(gaps, 0.0, other_sizes=True)
        use = f"from dino_tower import load_tower\n\ntower = load_tower('timm:{out.name}')"
        text = f"---\nlibrary_name: timm\ntags: [dino-tower, vision-tower]\n---\n\n# {out.name}\n\n{origin}\n"
        (folder / "README.md").write_text(f"{text}\n```python\n{use}\n```\n", encoding="utf-8")

    write_new(out, fill)
