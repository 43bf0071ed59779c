"""From one library's layout to another's, checked against the source's own features before it is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dino_tower.convert.source import Source, read_source
from dino_tower.errors import unknown
from dino_tower.export.formats import CONVERSIONS
from dino_tower.export.model_card import Facts, model_card
from dino_tower.export.same_features import Gap
from dino_tower.export.writing import refuse_existing, snippets_for, without_progress_bars, write_tower
from dino_tower.tower import Tower

KINDS = {
    "dino": "the original DINO code",
    "dinov2": "the original DINOv2 code",
    "timm": "timm",
    "vit": "transformers' ViT",
    "native": "transformers' Dinov2",
}


def convert_weights(
    source: str | Path,
    out: str | Path,
    to: str,
    *,
    network: str = "teacher",
    heads: int | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> float:
    """Write the ViT in `source` to the directory `out` in the layout `to`, a name of `formats.CONVERSIONS`.

    source: a .pth or .safetensors file, or a directory of transformers, timm or the original's layout. network: which
    of a training checkpoint. heads: the number of attention heads, where nothing beside the weights tells it.
    Returns the largest difference to the features of the source in its own library at the native size (and at two
    others, where both resize positions in the same way). Raises ConfigError, and writes nothing, for what cannot be
    read, cannot be held by the layout, or would not give the same features.
    """
    out = Path(out)
    if to not in CONVERSIONS:
        raise unknown("format", to, CONVERSIONS, "--to")
    refuse_existing(out)
    with without_progress_bars():
        read = read_source(source, network, heads)
    tower = Tower(read.model, read.processor, str(source))
    for line in [f"read as {KINDS[read.kind]}", *read.notes]:
        say(line)

    def card(gaps: list[Gap], notes: list[str], folder: Path) -> str:
        origin = (
            f"A vision tower converted from the layout of {KINDS[read.kind]} with "
            "dino-tower. Who trained it says on what, and under which licence."
        )
        lines = [*read.notes, *notes]
        snippets = snippets_for(tower, to, out.name, folder)
        return model_card(tower, Facts(out.name, to, snippets, origin, None, lines, [str(gap) for gap in gaps]))

    return write_tower(tower, read.forward, out, to, card, say=say, resized=_resizing(read, to), choices=CONVERSIONS)


def _resizing(read: Source, to: str) -> str:
    """Why features differ between sizes by design; empty where both libraries resize positions alike."""
    way = {"vit": "by size", "native": "by size", "timm": "by size, antialiased"}
    ways = [way.get(layout, "by scale factor + 0.1") for layout in (read.kind, to)]
    registers = getattr(read.model.config, "num_register_tokens", 0)
    if ways[0] == ways[1] or registers:  # with registers all do the same
        return ""
    return f"{KINDS[read.kind]} resizes positions {ways[0]}, {KINDS[to]} {ways[1]}"
