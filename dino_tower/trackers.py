"""Experiment trackers through accelerate, by name."""

from __future__ import annotations

from importlib.util import find_spec

from accelerate.utils import LoggerType

from dino_tower.errors import ConfigError, unknown


def tracker_names(asked: str) -> list[str]:
    """What to hand to accelerate's `log_with` for `auto`, `none` or the name of a tracker.

    Raises ConfigError for a tracker that accelerate does not know or whose package is not installed.
    """
    if asked == "none":
        return []
    if asked == "auto":
        return ["tensorboard"] if find_spec("tensorboard") else []
    known = [str(kind.value) for kind in LoggerType if kind.value != "all"]
    if asked not in known:
        raise unknown("tracker", asked, [*known, "auto", "none"], "monitor.tracker")
    package = {"comet_ml": "comet_ml", "clearml": "clearml"}.get(asked, asked)
    if not find_spec(package):
        raise ConfigError(f"monitor.tracker: {asked} is not installed; pip install {asked}, or set it to none")
    return [asked]
