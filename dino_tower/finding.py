"""Where the files of a TOWER lie: a directory, a run, a built-in tower or a Hub id."""

from __future__ import annotations

from pathlib import Path

from dino_tower.architectures import names
from dino_tower.checkpoint import checkpoints
from dino_tower.errors import ConfigError, unknown
from dino_tower.run.spelling import network_of, run_and_network

BUILTIN = Path(__file__).parent / "builtin"


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
    run, who = run_and_network(what)
    if run is not None:
        return str(newest(run, name) / network_of(who, name))
    if what and Path(what).is_dir():
        return what
    if what.startswith((".", "/", "~")) or what.count("/") != 1 or ":" in what:
        raise ConfigError(
            f"no tower {name!r}: not a directory, a run, a checkpoint file or a Hub id (OWNER/NAME); "
            f"other spellings begin with timm:, torchvision:, random: or builtin:{_like(what, name)}"
        )
    return what


def newest(run: Path, name: str = "") -> Path:
    """The newest whole checkpoint of a run. Raises ConfigError where there is none."""
    whole = checkpoints(run / "checkpoints")
    if not whole:
        raise ConfigError(f"{name or run}: the run has no checkpoint yet")
    return whole[-1]


def _like(what: str, name: str) -> str:
    """The nearest architecture, where one was probably meant."""
    from difflib import get_close_matches

    near = get_close_matches(what, names(), n=1, cutoff=0.6)
    return f"; did you mean random:{near[0]}?" if near else ""
