"""A second stage of a run: at high resolution, from the weights of the first; settled before torch has loaded.

Reference: DINOv2, section 5 ("adapting the resolution"): the same recipe at 518 pixels for 10,000 steps, all schedules
compressed into them, the learning rate lower. The authors never published by how much, nor the size of the local views.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from dino_tower.config import from_tree, read_yaml
from dino_tower.errors import ConfigError
from dino_tower.pretrain.settings import Config, PixelsConfig
from dino_tower.run.spelling import run_and_network

LARGER = 518 / 224  # sides of views, rounded to whole patches; local views keep their share of the global ones
STEPS = 10_000
LOWER = 0.1  # of the learning rate
NEW_HEADS = 0.1  # share of the steps in which heads that the weights came without learn alone


def run_of(start: str | None) -> Path | None:
    """The run directory of a start spelled RUN, RUN@student or RUN@teacher; None for anything else."""
    return run_and_network(start)[0] if start and not (Path(start) / "config.json").is_file() else None


def settings_of(run: Path) -> Config:
    """What a run was trained with, as settings for another one: without its data, its output and its own start.

    Nor its pixels: its weights say what they know, and measured on other data they would be others.
    """
    saved = run / "config.yaml"
    return replace(
        from_tree(Config(), read_yaml(saved), str(saved)),
        data=(), output="", init_from=None, steps=None, resume="no", print_config=False, pixels=PixelsConfig(),
    )  # fmt: skip


def hires(config: Config, with_heads: bool) -> Config:
    """The settings of a high-resolution stage after the one that `config` describes.

    with_heads: the heads come along with the weights; else new ones learn alone at first.
    """
    match = re.match(r"vit[a-z]+(\d+)", config.arch)
    patch = int(match[1]) if match else 112  # of towers whose patch is not in their name: of 14 or 16

    def larger(side: int) -> int:
        return patch * round(side * LARGER / patch)

    crops, optim = config.crops, config.optim
    recipe = config.recipe_epochs or config.epochs
    return replace(
        config,
        stage="hires",
        steps=STEPS,
        recipe_epochs=recipe,
        crops=replace(crops, global_size=larger(crops.global_size), local_size=larger(crops.local_size)),
        optim=replace(
            optim,
            base_lr=LOWER * optim.base_lr,
            min_lr=min(optim.min_lr, LOWER * optim.base_lr),
            freeze_backbone_epochs=0.0 if with_heads else NEW_HEADS * recipe,
        ),
    )


def check_stage(config: Config) -> None:
    """Raise ConfigError for a high-resolution stage that starts from nothing, or at no higher resolution."""
    if config.stage != "hires":
        return
    if config.init_from is None:
        raise ConfigError("stage hires goes on from weights: --init-from RUN, or a directory or Hub id, is missing")
    run, size = run_of(config.init_from), config.crops.global_size
    if run is not None and (run / "config.yaml").is_file() and (before := settings_of(run).crops.global_size) >= size:
        raise ConfigError(f"stage hires: crops.global_size is {size}, and {run} was trained at {before}: give more")
