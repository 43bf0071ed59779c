"""`dino-tower adapt TOWER --task NAME ...`: finds what does the task, which has a command of its own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from dino_tower.errors import ConfigError, unknown

# task -> module:function, which takes all the words behind `adapt`
TASKS = {
    "classify": "dino_tower.adapters.command:adapt",
    "segment": "dino_tower.adapters.command:adapt",
    "depth": "dino_tower.adapters.command:adapt",
    "ssl": "dino_tower.adapt_ssl:main",
    "text": "dino_tower.adapters.text.command:main",
    "vlm": "dino_tower.adapters.vlm_command:main",
}


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError for a task that is missing or unknown."""
    task = _task(argv)
    if task is None and ("--help" in argv or "-h" in argv):
        task = "classify"
    if task is None:
        raise ConfigError(f"adapt: --task is missing; choices: {', '.join(TASKS)} (see `dino-tower adapt --help`)")
    if task not in TASKS:
        raise unknown("task", task, TASKS, "--task")
    module, _, function = TASKS[task].partition(":")
    return int(getattr(import_module(module), function)(list(argv)))


def adapt(argv: Sequence[str]) -> int:
    """Classes, classes of pixels, or depth. Returns the exit code."""
    from dino_tower.adapters.config import read_config
    from dino_tower.adapters.settings import Config
    from dino_tower.config import print_help, to_yaml

    if "--help" in argv or "-h" in argv:
        print_help(Config, "dino-tower adapt TOWER", "Adapt a tower to labelled pictures: PEFT and a head.")
    config = read_config(argv)
    if config.print_config:
        print(to_yaml(config), end="")
        return 0
    from dino_tower.adapters.train import run  # torch: a mistake is answered before it has loaded

    return run(config, argv)


def _task(argv: Sequence[str]) -> str | None:
    found = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--task":
            found = following
        elif word.startswith("--task="):
            found = word.removeprefix("--task=")
    return found
