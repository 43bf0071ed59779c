"""TOWER, one spelling everywhere: which model stands behind a name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dino_tower.architectures import build, names
from dino_tower.dual import beside
from dino_tower.families import family_of
from dino_tower.finding import find
from dino_tower.images import processor_for
from dino_tower.loading import Loaded, load_transformers

RANDOM_SIZE = 224  # pixels of random:ARCHITECTURE


def open_tower(name: str, dtype: torch.dtype | None) -> Loaded:
    """The model and processor behind a TOWER; dtype None is what its file holds. Raises ConfigError."""
    if not name.startswith("random:"):
        return _cast(_open(name, name, dtype, untrained=False), dtype)
    what = name.removeprefix("random:")
    with torch.random.fork_rng(devices=[]):  # the same twin every time, and the caller's random state is left alone
        torch.manual_seed(0)
        if what not in names():
            return _cast(_open(name, what, dtype, untrained=True), dtype)
        model = build(what, image_size=RANDOM_SIZE)
    family = family_of(model)
    patch = 1 if family.attention is None else family.patch(model)
    return _cast(Loaded(model, processor_for(RANDOM_SIZE, patch)), dtype)


def _open(name: str, what: str, dtype: torch.dtype | None, untrained: bool) -> Loaded:
    library, colon, rest = what.partition(":")
    if colon and library in ("timm", "torchvision"):
        from dino_tower import foreign  # timm takes a second to import

        load = foreign.load_timm if library == "timm" else foreign.load_torchvision
        return load(rest, name, untrained)
    if Path(what).is_file():
        from dino_tower.published import load_published

        return load_published(Path(what), name, untrained)
    found = what if (Path(what) / "base.json").is_file() else find(what, name)
    place = Path(found)
    if (place / "base.json").is_file():
        from dino_tower.peft_adapter import open_adapted, tower_below

        if untrained:
            return open_tower(f"random:{tower_below(place).removeprefix('random:')}", dtype)
        return open_adapted(place, name, open_tower)
    loaded = load_transformers(found, name, dtype, untrained)
    return _with_text_side(loaded, place, untrained)


def _with_text_side(loaded: Loaded, folder: Path, untrained: bool) -> Loaded:
    """The same with the text tower that a run trained beside it, if it did (`dino_tower.dual`)."""
    whole = beside(loaded.model, folder, untrained) if loaded.whole is None else None
    return loaded if whole is None else replace(loaded, model=whole.vision_model, whole=whole)


def _cast(loaded: Loaded, dtype: torch.dtype | None) -> Loaded:
    if dtype is not None:
        (loaded.model if loaded.whole is None else loaded.whole).to(dtype)
    return loaded
