"""`dino-tower adapt TOWER --task text`: from words to settings, and what cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dino_tower.adapters.text.settings import Config
from dino_tower.config import Tree, differences, from_tree, print_help, read_yaml, to_yaml, words_to_tree
from dino_tower.errors import ConfigError

# What may differ between a run and its continuation; that the global batch is the same is asked of the checkpoint.
FREE_ON_RESUME = (
    "output", "resume", "print_config", "workers", "batch_size", "checkpoint_every", "monitor.log_every", "compute.cpu",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """`TOWER --data SOURCE --output DIR [--section.key value]`; returns the exit code. Raises ConfigError."""
    if "--help" in argv or "-h" in argv:
        print_help(Config, "dino-tower adapt TOWER --task text", __doc__ or "")
    config = read_config(argv)
    if config.print_config:
        print(to_yaml(config), end="")
        return 0
    from dino_tower.adapters.text.train import STOPPED, align  # torch: a mistake is answered before it has loaded
    from dino_tower.signals import Stopped, StopSignals

    with StopSignals() as signals:
        try:
            return align(config, signals)
        except Stopped:
            print(f"stopped by {signals.received} before a step was done; go on with --resume auto", flush=True)
            return STOPPED


def read_config(argv: Sequence[str]) -> Config:
    """The settings of a command line; with --resume those of the run's own config.yaml. Raises ConfigError."""
    words = list(argv)
    if words and not words[0].startswith("--"):
        words = ["--tower", *words]
    if "--task" in words:
        at = words.index("--task")
        del words[at : at + 2]
    words = [word for word in words if not word.startswith("--task=")]
    tree = words_to_tree(Config, words)
    config = from_tree(Config(), tree, "command line")
    saved = Path(config.output or ".") / "config.yaml"
    if config.resume != "no" and config.output and saved.is_file():
        config = _continued(saved, tree)
    for name, meaning in (("tower", "TOWER"), ("data", "--data SOURCE"), ("output", "--output DIR")):
        if not getattr(config, name) and not config.print_config:
            raise ConfigError(f"command line: {meaning} is missing: dino-tower adapt TOWER --task text --data SOURCE "
                              "--output DIR")  # fmt: skip
    check(config)
    return config


def _continued(saved: Path, tree: Tree) -> Config:
    run = from_tree(Config(), read_yaml(saved), str(saved))
    kept = from_tree(run, tree, "command line")
    for key, old, new in differences(run, kept):
        if key not in FREE_ON_RESUME:
            flag = key.replace("_", "-")
            raise ConfigError(f"{saved}: this run has {key} {old!r}, not {new!r}; leave --{flag} out to go on")
    return kept


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
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{key} is {value}; it must be above 0")
    for key, number in not_negative.items():
        if number is not None and number < 0:
            raise ConfigError(f"{key} is {number}; it must not be negative")
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
