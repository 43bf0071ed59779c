"""`dino-tower adapt TOWER --task vlm`: from the words of a command line to a training."""

from __future__ import annotations

from collections.abc import Sequence

from dino_tower.adapters.reading import settings_of
from dino_tower.adapters.vlm_settings import Config
from dino_tower.config import print_help, to_yaml
from dino_tower.errors import ConfigError, unknown
from dino_tower.peft_methods import METHODS, PeftSettings, method_names
from dino_tower.run.settings import check_numbers

# What may differ between a run and its continuation: it changes speed or reporting, not the weights.
FREE_ON_RESUME = ("output", "resume", "print_config", "workers", "checkpoint_every", "monitor", "compute.cpu")
MISSING = {
    "tower": "TOWER is missing: the tower to put in, as in `dino-tower adapt TOWER --task vlm`",
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
    asked = settings_of(Config, argv, FREE_ON_RESUME, MISSING)
    check(asked)
    return asked


def check(config: Config) -> None:
    """Raise ConfigError, naming the key, for values that no run can use."""
    stages = (config.stage1, config.stage2)
    if (config.language_model is None) == (config.vlm is None) and not config.print_config:
        raise ConfigError("command line: give --language-model DIR (a causal language model) or --vlm DIR (a LLaVA)")
    if not (any(config.data) or config.print_config or all(stage.data for stage in stages if stage.steps != 0)):
        raise ConfigError("command line: --data FILE is missing: conversations in LLaVA's format")
    positive: dict[str, float | None] = {
        "size": config.size, "length": config.length, "checkpoint_every": config.checkpoint_every,
        "monitor.log_every": config.monitor.log_every, "language.rank": config.language.rank,
        "language.alpha": config.language.alpha,
    }  # fmt: skip
    not_negative: dict[str, float | None] = {"workers": config.workers, "seed": config.seed}
    for name, stage in zip(("stage1", "stage2"), stages, strict=True):
        positive |= {f"{name}.batch_size": stage.batch_size, f"{name}.accumulate": stage.accumulate}
        not_negative |= {f"{name}.{key}": getattr(stage, key) for key in ("steps", "lr", "tower_lr", "weight_decay")}
        positive |= {f"{name}.epochs": stage.epochs}
        if not 0 <= stage.warmup < 1:
            raise ConfigError(f"{name}.warmup is {stage.warmup}; it is a share of the steps, from 0 to below 1")
    check_numbers(positive, not_negative)
    if not 0 <= config.language.dropout < 1:
        raise ConfigError(f"language.dropout is {config.language.dropout}; it must lie between 0 and 1")
    if config.stage1.steps == 0 and config.stage2.steps == 0:
        raise ConfigError("stage1.steps and stage2.steps are both 0: nothing would be trained")
    if config.method not in method_names():
        raise unknown("method", config.method, method_names(), "--method")
    if config.method not in METHODS and config.peft != PeftSettings():
        raise ConfigError(f"--method {config.method} has no adapter: leave the settings of --peft out")
