"""From a command line to the settings of a run: presets, overrides, the run's own config.yaml, and what cannot be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from dino_tower.config import Tree, differences, from_tree, read_yaml, words_to_tree
from dino_tower.errors import ConfigError, unknown
from dino_tower.pretrain.objectives.settings import check_terms
from dino_tower.pretrain.settings import Config

PRESETS = Path(str(files("dino_tower.pretrain"))) / "presets"

# What may differ between a run and its continuation: it changes speed or reporting, not the weights.
FREE_ON_RESUME = (
    "output", "preset", "resume", "print_config", "workers", "checkpoint_every", "monitor", "faults",
    "batch_size", "compute.accumulate", "compute.cpu", "compute.activation_checkpointing",
)  # fmt: skip


def preset_names() -> list[str]:
    """The recipes in the package."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The YAML file of a preset name or path; ConfigError with the nearest name."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    return PRESETS / f"{name}.yaml"


def load_preset(name: str) -> Config:
    """The settings of one recipe."""
    path = preset_path(name)
    config = from_tree(Config(), read_yaml(path), path.name)
    return replace(config, preset=name, recipe_epochs=config.epochs)


def read_config(argv: Sequence[str]) -> Config:
    """The settings that a command line asks for: a preset under it, or, on `--resume`, the run's own config.yaml.

    Raises ConfigError for a wrong key or value, for missing --data or --output, and, on `--resume`, for a setting that
    differs from the run's.
    """
    words = words_to_tree(Config, argv)
    start = load_preset(str(words.get("preset", Config.preset)))
    asked = from_tree(start, words, "command line")
    if not asked.output and not asked.print_config:
        raise ConfigError("command line: --output DIR is missing: where the run is to be written")
    saved = Path(asked.output or ".") / "config.yaml"
    if asked.resume != "no" and asked.output and os.path.isfile(saved):  # noqa: PTH113 (False for an impossible name)
        return _continue(saved, words, asked)
    if not asked.data:
        raise ConfigError("command line: --data SOURCE is missing: a folder, hf:NAME, tar:PATTERN, a list, or scenes")
    check(asked)
    return asked


def _continue(saved: Path, words: Tree, asked: Config) -> Config:
    """The run's settings with the free ones of the command line; ConfigError where another one differs."""
    run = from_tree(Config(), read_yaml(saved), str(saved))
    kept = from_tree(run, {k: v for k, v in words.items() if k != "preset"}, "command line")
    if "preset" in words and asked.preset != run.preset:
        raise ConfigError(
            f"{saved}: this run was started with --preset {run.preset}, not {asked.preset}; leave --preset out"
        )
    for key, old, new in differences(run, kept):
        if must_stay(key):
            raise ConfigError(
                f"{saved}: this run has {key} {old!r}, not {new!r}; leave --{key.replace('_', '-')} out to go on, "
                "or start a new run in another --output"
            )
    check(kept)
    return kept


def must_stay(key: str) -> bool:
    """Whether a setting, by its dotted key, has to be the same in a run and its continuation."""
    return not any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)


def check(config: Config) -> None:
    """Raise ConfigError, naming the key, for values that no run can use."""
    model, head, loss, optim = config.model, config.head, config.loss, config.optim
    positive: dict[str, float | None] = {
        "epochs": config.epochs, "steps": config.steps, "batch_size": config.batch_size,
        "checkpoint_every": config.checkpoint_every, "compute.accumulate": config.compute.accumulate,
        "monitor.log_every": config.monitor.log_every, "faults.keep_last": config.faults.keep_last,
        "model.width": model.width, "model.depth": model.depth, "model.heads": model.heads,
        "head.prototypes": head.prototypes, "head.hidden": head.hidden, "head.bottleneck": head.bottleneck,
        "loss.student_temp": loss.student_temp, "loss.teacher_temp": loss.teacher_temp,
        "loss.teacher_temp_start": loss.teacher_temp_start, "source.window": config.source.window,
        "source.max_samples": config.source.max_samples, "optim.layer_decay": optim.layer_decay,
        "model.layerscale": model.layerscale,
    }  # fmt: skip
    not_negative: dict[str, float] = {
        "workers": config.workers, "seed": config.seed, "optim.base_lr": optim.base_lr, "optim.min_lr": optim.min_lr,
        "optim.warmup_epochs": optim.warmup_epochs, "optim.clip": optim.clip, "head.freeze_epochs": head.freeze_epochs,
        "optim.weight_decay": optim.weight_decay, "optim.weight_decay_end": optim.weight_decay_end,
        "loss.teacher_temp_warmup": loss.teacher_temp_warmup, "monitor.minutes": config.monitor.minutes,
        "monitor.knn_images": config.monitor.knn_images, "monitor.pictures": config.monitor.pictures,
        "faults.keep_every": config.faults.keep_every, "faults.max_skipped": config.faults.max_skipped,
        "optim.patch_embed_lr": optim.patch_embed_lr,
        "optim.freeze_backbone_epochs": optim.freeze_backbone_epochs, "optim.backbone_lr": optim.backbone_lr,
        "model.token_std": model.token_std,
        "faults.max_bad_steps": config.faults.max_bad_steps, "faults.max_rollbacks": config.faults.max_rollbacks,
    }  # fmt: skip
    shares: dict[str, float] = {
        "teacher.momentum": config.teacher.momentum, "teacher.momentum_end": config.teacher.momentum_end,
        "loss.centre_momentum": loss.centre_momentum, "model.drop_path": model.drop_path,
        "optim.layer_decay": optim.layer_decay,
    }  # fmt: skip
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{key} is {value}; it must be above 0")
    for key, value in not_negative.items():
        if value < 0:
            raise ConfigError(f"{key} is {value}; it must not be negative")
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{key} is {value}; it must lie between 0 and 1")
    if config.seed >= 2**63:
        raise ConfigError(f"seed is {config.seed}; it must be below 2^63")
    mean, std = config.pixels.mean, config.pixels.std
    if (mean is None) != (std is None):
        raise ConfigError("pixels.mean and pixels.std belong together; give both or neither")
    if std is not None and min(std) <= 0:
        raise ConfigError(f"pixels.std is {std}; each must be above 0")
    if config.arch.startswith("resnet") and (optim.layer_decay, optim.patch_embed_lr) != (1, 1):
        raise ConfigError(f"{config.arch} has no blocks: leave optim.layer_decay and optim.patch_embed_lr at 1")
    check_terms(config)
