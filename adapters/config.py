"""From a command line to the settings of an adaptation, and what cannot be."""

from __future__ import annotations

from collections.abc import Sequence

from dino_tower.adapters.reading import settings_of
from dino_tower.adapters.settings import Config
from dino_tower.errors import ConfigError, unknown
from dino_tower.peft_methods import METHODS, PeftSettings, method_names
from dino_tower.run.settings import check_numbers

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
    asked = settings_of(Config, argv, FREE_ON_RESUME, MISSING)
    check(asked)
    return asked


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
    check_numbers(positive, not_negative, shares)
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
