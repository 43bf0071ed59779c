"""From `TOWER --task NAME --section.key value` to settings, for every task's own kind of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from dino_tower.config import from_tree, words_to_tree
from dino_tower.errors import ConfigError
from dino_tower.run.settings import continued, saved_settings

T = TypeVar("T")


def settings_of(kind: type[T], argv: Sequence[str], free: Iterable[str], missing: Mapping[str, str]) -> T:
    """The settings that the words ask for, or, on --resume, the run's own with what is `free` to differ.

    missing: what to say, by key, where a setting that a run cannot do without is not given. Raises ConfigError for
    that, for a wrong key or value, and for a setting that differs from the run's.
    """
    words = _without_task(argv) if "task" not in {field.name for field in fields(kind)} else list(argv)  # type: ignore[arg-type]
    if words and not words[0].startswith("-"):
        words = ["--tower", *words]
    tree = words_to_tree(kind, words)
    asked: Any = from_tree(kind(), tree, "command line")
    if (saved := saved_settings(asked.output, asked.resume)) is not None:
        asked = continued(kind(), saved, tree, free)
    for key, said in missing.items():
        if not getattr(asked, key) and not asked.print_config:
            raise ConfigError(f"command line: {said}")
    found: T = asked
    return found


def _without_task(argv: Sequence[str]) -> list[str]:
    words = [word for word in argv if not word.startswith("--task=")]
    if "--task" in words:
        at = words.index("--task")
        del words[at : at + 2]
    return words
