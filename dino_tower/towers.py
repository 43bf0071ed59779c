"""TOWER, one spelling everywhere: which model stands behind a name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dino_tower.architectures import build, names
from dino_tower.checkpoint import checkpoints
from dino_tower.dual import beside
from dino_tower.errors import ConfigError, unknown
from dino_tower.families import family_of
from dino_tower.images import processor_for
from dino_tower.loading import Loaded, load_transformers

BUILTIN = Path(__file__).parent / "builtin"
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


def find(what: str, name: str = "") -> str:
    """The transformers directory (or Hub id) behind a TOWER; errors name it as `name`. Raises ConfigError."""
    name = name or what
    if what.startswith("builtin:"):
        towers = sorted(p.name for p in BUILTIN.iterdir() if p.is_dir()) if BUILTIN.is_dir() else []
        if what.removeprefix("builtin:") not in towers:
            raise unknown("built-in tower", what, [f"builtin:{t}" for t in towers], "" if name == what else name)
        return str(BUILTIN / what.removeprefix("builtin:"))
    if what and (Path(what) / "config.json").is_file():  # an adaptation is a run and, once it is finished, a tower
        return what
    root, _, who = what.partition("@")
    if (Path(root) / "checkpoints").is_dir() or (Path(root) / "config.yaml").is_file():
        who = who or "student"
        if who not in ("student", "teacher"):
            raise unknown("network of a run", who, ("student", "teacher"), name)
        whole = checkpoints(Path(root) / "checkpoints")
        if not whole:
            raise ConfigError(f"{name}: the run has no checkpoint yet")
        return str(whole[-1] / who)
    if what and Path(what).is_dir():
        return what
    if what.startswith((".", "/", "~")) or what.count("/") != 1 or ":" in what:
        raise ConfigError(
            f"no tower {name!r}: not a directory, a run, a checkpoint file or a Hub id (OWNER/NAME); "
            f"other spellings begin with timm:, torchvision:, random: or builtin:{_like(what, name)}"
        )
    return what


def _like(what: str, name: str) -> str:
    """The nearest architecture, where one was probably meant."""
    from difflib import get_close_matches

    near = get_close_matches(what, names(), n=1, cutoff=0.6)
    return f"; did you mean random:{near[0]}?" if near else ""
