"""Numbers, names and colours as the report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dino_tower.pages import escape

COLOURS = ("var(--s0)", "var(--s1)", "var(--s2)", "var(--s3)", "#b08a00", "#5b6bbf", "#c24d6b", "#5f7f3a")
LAYERS = {"last": "last layer", "best": "best layer", "pca256": "256 features"}


def number(value: float | None, metric: Mapping[str, Any]) -> str:
    """A score in the metric's unit."""
    if value is None:
        return "n/a"
    return f"{100 * value:.1f}" if metric["unit"] == "%" else f"{value:.3f}"


def unit(metric: Mapping[str, Any]) -> str:
    """ " %", " m" or nothing."""
    return f" {metric['unit']}" if metric["unit"] else ""


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Paths by their last parts, as many as tell them apart; everything else as it is."""
    found = {}
    for name in names:
        parts = Path(name).parts
        found[name] = next(
            ("/".join(parts[-n:]) for n in range(1, len(parts)) if not _shared(parts[-n:], name, names)), name
        )
    return found


def _shared(end: Sequence[str], name: str, names: Sequence[str]) -> bool:
    # an untrained twin ends like its tower and is told apart by its own word
    others = (other for other in names if other.removeprefix("random:") != name.removeprefix("random:"))
    return any(Path(other).parts[-len(end) :] == tuple(end) for other in others)


def colours(towers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """One for each tower; an untrained twin has its tower's."""
    names = [one["name"] for one in towers if one["role"] == "tower"]
    by_name = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    return {one["name"]: by_name.get(one["of"] or one["name"], "var(--faint)") for one in towers}


def dot(colour: str, hollow: bool = False) -> str:
    """The mark of a tower in tables and legends."""
    style = f"border-color:{colour}" + ("" if hollow else f";background:{colour}")
    return f'<i class="dot" style="{escape(style)}"></i>'
