"""The settings of a run and of its continuation, and numbers that no run can use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from dino_tower.config import Tree, differences, from_tree, read_yaml
from dino_tower.errors import ConfigError

T = TypeVar("T")


def saved_settings(output: str, resume: str) -> Path | None:
    """The config.yaml that a run in `output` goes on with; None where there is nothing to go on with."""
    saved = Path(output or ".") / "config.yaml"
    exists = os.path.isfile(saved)  # noqa: PTH113 (False for an impossible name)
    return saved if resume != "no" and output and exists else None


def continued(default: T, saved: Path, words: Tree, free: Iterable[str]) -> T:
    """The settings in `saved` with those of the command line that may differ; ConfigError where another one does."""
    run = from_tree(default, read_yaml(saved), str(saved))
    kept = from_tree(run, words, "command line")
    for key, old, new in differences(run, kept):
        if must_stay(key, free):
            raise ConfigError(
                f"{saved}: this run has {key} {old!r}, not {new!r}; leave --{key.replace('_', '-')} out to go on, "
                "or start a new run in another --output"
            )
    return kept


def must_stay(key: str, free: Iterable[str]) -> bool:
    """Whether a setting, by its dotted key, has to be the same in a run and its continuation."""
    return not any(key == name or key.startswith(f"{name}.") for name in free)


def check_numbers(
    positive: Mapping[str, float | None],
    not_negative: Mapping[str, float | None],
    shares: Mapping[str, float] | None = None,
) -> None:
    """Raise ConfigError, naming the key, for a number out of its range; None is a setting left open."""
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{key} is {value}; it must be above 0")
    for key, value in not_negative.items():
        if value is not None and value < 0:
            raise ConfigError(f"{key} is {value}; it must not be negative")
    for key, share in (shares or {}).items():
        if not 0 <= share <= 1:
            raise ConfigError(f"{key} is {share}; it must lie between 0 and 1")
