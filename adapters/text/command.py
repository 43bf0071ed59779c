"""`dino-tower adapt TOWER --task text`: from words to settings, and what cannot be."""

from __future__ import annotations

from collections.abc import Sequence

from dino_tower.adapters.reading import settings_of
from dino_tower.adapters.text.settings import Config
from dino_tower.config import print_help, to_yaml
from dino_tower.errors import ConfigError
from dino_tower.run.settings import check_numbers

# What may differ between a run and its continuation; that the global batch is the same is asked of the checkpoint.
FREE_ON_RESUME = (
    "output", "resume", "print_config", "workers", "batch_size", "checkpoint_every", "monitor.log_every", "compute.cpu",
)  # fmt: skip

COMMAND = "dino-tower adapt TOWER --task text --data SOURCE --output DIR"
MISSING = {
    "tower": f"TOWER is missing: {COMMAND}",
    "data": f"--data SOURCE is missing: {COMMAND}",
    "output": f"--output DIR is missing: {COMMAND}",
}


def main(argv: Sequence[str]) -> int:
    """`TOWER --data SOURCE --output DIR [--section.key value]`; returns the exit code. Raises ConfigError."""
    if "--help" in argv or "-h" in argv:
        print_help(Config, "dino-tower adapt TOWER --task text", __doc__ or "")
    config = read_config(argv)
    if config.print_config:
        print(to_yaml(config), end="")
        return 0
    from dino_tower.adapters.text.train import align  # torch: a mistake is answered before it has loaded
    from dino_tower.run.entry import guarded

    return guarded(lambda signals: align(config, signals), config.output)


def read_config(argv: Sequence[str]) -> Config:
    """The settings of a command line; with --resume those of the run's own config.yaml. Raises ConfigError."""
    config = settings_of(Config, argv, FREE_ON_RESUME, MISSING)
    check(config)
    return config


def check(config: Config) -> None:
    """Raise ConfigError, naming the key, for values that no run can use."""
    text, optim = config.text, config.optim
    positive = {
        "epochs": config.epochs, "steps": config.steps, "batch_size": config.batch_size, "size": config.size,
        "checkpoint_every": config.checkpoint_every, "monitor.log_every": config.monitor.log_every,
        "text.length": text.length, "text.width": text.width, "text.depth": text.depth, "text.heads": text.heads,
        "text.vocabulary": text.vocabulary, "loss.texts": config.loss.texts,
        "source.max_samples": config.source.max_samples,
    }  # fmt: skip
    not_negative: dict[str, float | None] = {
        "workers": config.workers, "seed": config.seed, "cache_gib": config.cache_gib, "optim.lr": optim.lr,
        "head.blocks": config.head.blocks, "optim.weight_decay": optim.weight_decay, "optim.clip": optim.clip,
        "optim.text_lr": optim.text_lr,
    }  # fmt: skip
    check_numbers(positive, not_negative)
    if not 0 <= optim.warmup <= 1:
        raise ConfigError(f"optim.warmup is {optim.warmup}; it is a share of the steps, between 0 and 1")
    if config.batch_size < 2:
        raise ConfigError(f"batch_size is {config.batch_size}; a picture needs others to be told from")
    if text.frozen and text.encoder is None:
        raise ConfigError("text.frozen holds an encoder that nobody has trained; name one with --text.encoder DIR")
    if text.encoder is None and text.pooling == "pooler":
        raise ConfigError("text.pooling pooler: the small encoder has none; choices: auto, first, last, mean")
    if config.source.weights:
        raise ConfigError("source.weights: text alignment reads every picture once an epoch; leave them out")
