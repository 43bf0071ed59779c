"""From a command line to the settings of a run: presets, overrides, the run's own config.yaml, and what cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from dino_tower.config import Tree, from_tree, read_yaml, words_to_tree
from dino_tower.errors import ConfigError, unknown
from dino_tower.pretrain.network.lora_settings import check_lora
from dino_tower.pretrain.objectives.settings import check_terms
from dino_tower.pretrain.settings import Config
from dino_tower.pretrain.stages import check_stage, hires, run_of, settings_of
from dino_tower.run.settings import check_numbers, continued, saved_settings

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
    start = _below(words)
    if "epochs" in words and "steps" not in words:
        start = replace(start, steps=None)  # of the preset or the stage: what is asked for goes before
    asked = from_tree(start, words, "command line")
    if not asked.output and not asked.print_config:
        raise ConfigError("command line: --output DIR is missing: where the run is to be written")
    if (saved := saved_settings(asked.output, asked.resume)) is not None:
        return _continue(saved, words, asked)
    if not asked.data and asked.resume == "true":
        raise ConfigError(f"--resume: there is no run in {asked.output}; leave --resume out to start one")
    if not asked.data:
        raise ConfigError("command line: --data SOURCE is missing: a folder, hf:NAME, tar:PATTERN, a list, or scenes")
    check(asked)
    return asked


def _below(words: Tree) -> Config:
    """What the command line changes: a preset; of a stage at high resolution, what its start was trained with."""
    if words.get("stage") != "hires":
        return load_preset(str(words.get("preset", Config.preset)))
    run = run_of(str(words.get("init_from", "")))
    heads = run is not None and str(words.get("init_heads", "true")).lower() in ("true", "yes", "1")
    if run is not None and "preset" not in words:
        return hires(settings_of(run), heads)
    below = load_preset(str(words.get("preset", Config.preset)))
    return below if below.stage == "hires" else hires(below, heads)


def _continue(saved: Path, words: Tree, asked: Config) -> Config:
    """The run's settings with the free ones of the command line; ConfigError where another one differs."""
    rest = {k: v for k, v in words.items() if k != "preset"}
    kept = continued(Config(), saved, rest, FREE_ON_RESUME)
    if "preset" in words and asked.preset != kept.preset:
        raise ConfigError(
            f"{saved}: this run was started with --preset {kept.preset}, not {asked.preset}; leave --preset out"
        )
    check(kept)
    return kept


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
        "model.layerscale": model.layerscale, "model.rope_rescale": model.rope_rescale,
    }  # fmt: skip
    not_negative: dict[str, float | None] = {
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
    check_numbers(positive, not_negative, shares)
    if not 0 <= optim.beta2 < 1:
        raise ConfigError(f"optim.beta2 is {optim.beta2}; it must be 0 or more and below 1")
    if config.seed >= 2**63:
        raise ConfigError(f"seed is {config.seed}; it must be below 2^63")
    mean, std = config.pixels.mean, config.pixels.std
    if (mean is None) != (std is None):
        raise ConfigError("pixels.mean and pixels.std belong together; give both or neither")
    if std is not None and min(std) <= 0:
        raise ConfigError(f"pixels.std is {std}; each must be above 0")
    if config.arch.startswith("resnet") and (optim.layer_decay, optim.patch_embed_lr) != (1, 1):
        raise ConfigError(f"{config.arch} has no blocks: leave optim.layer_decay and optim.patch_embed_lr at 1")
    if head.norm_last_layer and not head.weight_norm:
        raise ConfigError("head.norm_last_layer keeps a gain at 1 that there is not without head.weight_norm: set "
                          "--head.norm-last-layer false")  # fmt: skip
    if model.rope_rescale is not None and (model.rope_rescale < 1 or "_rope" not in config.arch):
        raise ConfigError(f"model.rope_rescale is {model.rope_rescale} with arch {config.arch}: it is a number of 1 or "
                          "more, for a class with rotary positions such as vits16_rope")  # fmt: skip
    check_stage(config)
    check_terms(config)
    check_lora(config)
