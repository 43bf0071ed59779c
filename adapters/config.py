"""From a command line to the settings of an adaptation, and what cannot be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dino_tower.adapters.settings import Config
from dino_tower.config import Tree, differences, from_tree, read_yaml, words_to_tree
from dino_tower.errors import ConfigError, unknown
from dino_tower.peft_methods import METHODS, PeftSettings, method_names

# What may differ between a run and its continuation: it changes speed or reporting, not the weights.
FREE_ON_RESUME = (
    "output", "resume", "print_config", "merge", "workers", "checkpoint_every", "monitor", "faults",
    "batch_size", "compute.accumulate", "compute.cpu",
)  # fmt: skip
MISSING = {
    "tower": "TOWER is missing: the tower to adapt, as in `dino-tower adapt TOWER --task segment`",
    "data": "--data SOURCE is missing: what to learn from",
    "output": "--output DIR is missing: where the run is to be written",
}


def read_config(argv: Sequence[str]) -> Config:
    """The settings that `TOWER --task NAME ...` asks for, or, on --resume, the run's own config.yaml.

    Raises ConfigError for a wrong key or value, for what is missing, and, on --resume, for a setting that differs.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--tower", *words]
    tree = words_to_tree(Config, words)
    asked = from_tree(Config(), tree, "command line")
    saved = Path(asked.output or ".") / "config.yaml"
    if asked.resume != "no" and asked.output and os.path.isfile(saved):  # noqa: PTH113 (False for an impossible name)
        asked = _continue(saved, tree)
    for key, said in MISSING.items():
        if not getattr(asked, key) and not asked.print_config:
            raise ConfigError(f"command line: {said}")
    check(asked)
    return asked


def _continue(saved: Path, words: Tree) -> Config:
    """The run's settings with the free ones of the command line; ConfigError where another one differs."""
    run = from_tree(Config(), read_yaml(saved), str(saved))
    kept = from_tree(run, words, "command line")
    for key, old, new in differences(run, kept):
        if must_stay(key):
            raise ConfigError(
                f"{saved}: this run has {key} {old!r}, not {new!r}; leave it out to go on, or start a new run in "
                "another --output"
            )
    return kept


def must_stay(key: str) -> bool:
    """Whether a setting, by its dotted key, has to be the same in a run and its continuation."""
    return not any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)


def check(config: Config) -> None:
    """Raise ConfigError, naming the key, for values that no run can use."""
    head, optim, views = config.head, config.optim, config.views
    positive: dict[str, float | None] = {
        "size": config.size, "epochs": config.epochs, "steps": config.steps, "batch_size": config.batch_size,
        "checkpoint_every": config.checkpoint_every, "compute.accumulate": config.compute.accumulate,
        "monitor.log_every": config.monitor.log_every, "faults.keep_last": config.faults.keep_last,
        "source.max_samples": config.source.max_samples,
    }  # fmt: skip
    not_negative: dict[str, float | None] = {
        "workers": config.workers, "seed": config.seed, "optim.lr": optim.lr, "optim.tower_lr": optim.tower_lr,
        "optim.weight_decay": optim.weight_decay, "optim.clip": optim.clip,
        "faults.max_skipped": config.faults.max_skipped, "faults.max_bad_steps": config.faults.max_bad_steps,
    }  # fmt: skip
    shares = {"head.dropout": head.dropout, "optim.warmup": optim.warmup, "views.flip": views.flip}
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{key} is {value}; it must be above 0")
    for key, value in not_negative.items():
        if value is not None and value < 0:
            raise ConfigError(f"{key} is {value}; it must not be negative")
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{key} is {value}; it must lie between 0 and 1")
    if config.seed >= 2**63:
        raise ConfigError(f"seed is {config.seed}; it must be below 2^63")
    if head.channels < 4:
        raise ConfigError(f"head.channels is {head.channels}; a head needs four or more")
    if head.bins < 2:
        raise ConfigError(f"head.bins is {head.bins}; depth needs two bins or more")
    if not 0 < views.scale[0] <= views.scale[1] <= 1:
        raise ConfigError(f"views.scale is {views.scale}; give shares of the picture's area, 0 < low <= high <= 1")
    if not 0 < views.ratio[0] <= views.ratio[1]:
        raise ConfigError(f"views.ratio is {views.ratio}; give two ratios of width to height, 0 < low <= high")
    if config.method not in method_names():
        raise unknown("method", config.method, method_names(), "--method")
    if config.method not in METHODS and config.peft != PeftSettings():
        raise ConfigError(f"--method {config.method} has no adapter: leave the settings of --peft out")
    if config.merge and config.method == "none":
        raise ConfigError("--merge: --method none leaves the tower as it is; there is nothing to merge")
    if config.source.streaming or config.source.weights:
        raise ConfigError(
            "source.streaming and source.weights: adapt reads every picture once an epoch; leave them out"
        )
