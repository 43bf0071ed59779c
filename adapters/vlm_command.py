"""`dino-tower adapt TOWER --task vlm`: from the words of a command line to a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dino_tower.adapters.vlm_settings import Config
from dino_tower.config import differences, from_tree, print_help, read_yaml, to_yaml, words_to_tree
from dino_tower.errors import ConfigError, unknown
from dino_tower.peft_methods import METHODS, PeftSettings, method_names

# What may differ between a run and its continuation: it changes speed or reporting, not the weights.
FREE_ON_RESUME = ("output", "resume", "print_config", "workers", "checkpoint_every", "monitor", "compute.cpu")
MISSING = {
    "tower": "TOWER is missing: the tower to put in, as in `dino-tower adapt TOWER --task vlm`",
    "data": "--data FILE is missing: conversations in LLaVA's format",
    "output": "--output DIR is missing: where the VLM is to be written",
}


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0 done, 3 stopped on purpose and to be continued. Raises ConfigError."""
    if "--help" in argv or "-h" in argv:
        print_help(Config, "dino-tower adapt TOWER --task vlm", "A VLM from a tower and a language model.")
    config = read_config(argv)
    if config.print_config:
        print(to_yaml(config), end="")
        return 0
    from dino_tower.adapters.vlm.training import train_vlm  # torch: a mistake is answered before it has loaded

    return train_vlm(config)


def read_config(argv: Sequence[str]) -> Config:
    """The settings of a command line; on --resume the run's own, which may differ in what changes no weights.

    Raises ConfigError for a wrong key or value, and for what is missing.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--tower", *words]
    tree = words_to_tree(Config, words)
    asked = from_tree(Config(), tree, "command line")
    saved = Path(asked.output or ".") / "config.yaml"
    if asked.resume != "no" and asked.output and saved.is_file():
        run = from_tree(Config(), read_yaml(saved), str(saved))
        asked = from_tree(run, tree, "command line")
        for key, old, new in differences(run, asked):
            if not any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME):
                raise ConfigError(f"{saved}: this run has {key} {old!r}, not {new!r}; leave it out to go on")
    for key, said in MISSING.items():
        if not getattr(asked, key) and not asked.print_config:
            raise ConfigError(f"command line: {said}")
    check(asked)
    return asked


def check(config: Config) -> None:
    """Raise ConfigError, naming the key, for values that no run can use."""
    if (config.language_model is None) == (config.vlm is None) and not config.print_config:
        raise ConfigError("command line: give --language-model DIR (a causal language model) or --vlm DIR (a LLaVA)")
    positive: dict[str, float | None] = {
        "size": config.size, "length": config.length, "checkpoint_every": config.checkpoint_every,
        "monitor.log_every": config.monitor.log_every, "language.rank": config.language.rank,
        "language.alpha": config.language.alpha,
    }  # fmt: skip
    not_negative: dict[str, float | None] = {"workers": config.workers, "seed": config.seed}
    for name, stage in (("stage1", config.stage1), ("stage2", config.stage2)):
        positive |= {f"{name}.batch_size": stage.batch_size, f"{name}.accumulate": stage.accumulate}
        not_negative |= {f"{name}.{key}": getattr(stage, key) for key in ("steps", "lr", "tower_lr", "weight_decay")}
        positive |= {f"{name}.epochs": stage.epochs}
        if not 0 <= stage.warmup < 1:
            raise ConfigError(f"{name}.warmup is {stage.warmup}; it is a share of the steps, from 0 to below 1")
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{key} is {value}; it must be above 0")
    for key, value in not_negative.items():
        if value is not None and value < 0:
            raise ConfigError(f"{key} is {value}; it must not be negative")
    if not 0 <= config.language.dropout < 1:
        raise ConfigError(f"language.dropout is {config.language.dropout}; it must lie between 0 and 1")
    if config.stage1.steps == 0 and config.stage2.steps == 0:
        raise ConfigError("stage1.steps and stage2.steps are both 0: nothing would be trained")
    if config.method not in method_names():
        raise unknown("method", config.method, method_names(), "--method")
    if config.method not in METHODS and config.peft != PeftSettings():
        raise ConfigError(f"--method {config.method} has no adapter: leave the settings of --peft out")
