"""Two or more towers as one: `fuse_towers([...])` is a Tower, and its directory loads wherever a tower's does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from dino_tower.errors import ConfigError, unknown
from dino_tower.export.writing import refuse_existing, write_new
from dino_tower.fused import FUSIONS, FusedTower, FusedTowerConfig, Member
from dino_tower.images import IMAGENET_MEAN, IMAGENET_STD, processor_for
from dino_tower.tower import Tower, load_tower


def fuse_towers(
    towers: Sequence[Any],
    fusion: str = "concat",
    *,
    width: int | None = None,
    image_size: int | None = None,
    sizes: Sequence[int | None] | None = None,
    class_token: bool = False,
    output: str | Path | None = None,
) -> Tower:
    """One tower of copies of several; of a single one: its normed patches, without class token and registers.

    towers: Towers or TOWERs by name, of transformers. The first one's patch size makes the common grid, and its
        processor's mean and std normalise the pictures; for each other the model normalises and resizes them anew.
    fusion: "concat" of channels, "interleave" (Eyes Wide Shut, arXiv 2401.06209), or a learned "sum".
    width: features of a token for "interleave" and "sum"; default: the widest member's.
    image_size: pixels of the processor's crop, a multiple of the first tower's patch; default: its own.
    sizes: for each tower None (its patches are made to fall on the common grid, by resizing the picture) or the pixels
        a side that it is shown, its tokens then resampled to the grid: for one that knows its own resolution only.
    class_token: put one in front, for VLMs that cut one off. output: a directory to save to; it must not exist.
    Raises ConfigError.
    """
    if fusion not in FUSIONS:
        raise unknown("fusion", fusion, FUSIONS)
    members = [given if hasattr(given, "processor") else load_tower(given) for given in towers]
    if not members:
        raise ConfigError("no towers given; fuse_towers([TOWER, TOWER])")
    if output is not None:
        refuse_existing(Path(output))
    for member in members:
        _check(member)
    config = _config(members, fusion, width, image_size, sizes, class_token)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cast(Any, FusedTower)(config)
    for place, member in zip(model.members, members, strict=True):
        place.load_state_dict(member.model.state_dict(), strict=True)
    model.to(device=members[0].device, dtype=members[0].dtype)
    mean, std = tuple(config.image_mean or ()), tuple(config.image_std or ())
    processor = processor_for(config.image_size, config.patch_size, mean, std)
    name = " + ".join(member.name for member in members)
    if output is not None:

        def fill(folder: Path) -> None:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)

        write_new(Path(output), fill)
        name = str(output)
    return Tower(model, processor, name, folder=str(output or ""))


def _check(tower: Tower) -> None:
    if not isinstance(tower.model, PreTrainedModel):
        raise ConfigError(f"{tower.name} is no model of transformers, and only those can be fused; dino-tower convert")
    if isinstance(tower.model, FusedTower):
        raise ConfigError(f"{tower.name} is a fused tower already; name its members instead")
    if hasattr(tower.processor, "max_num_patches"):
        raise ConfigError(f"{tower.name} takes pictures of any shape as patches (NaFlex), which cannot be fused")
    if hasattr(tower.model, "peft_config") or getattr(tower.model, "_hf_peft_config_loaded", False):
        raise ConfigError(f"{tower.name} carries an adapter: merge it before it is fused")


def _config(
    members: Sequence[Tower],
    fusion: str,
    width: int | None,
    image_size: int | None,
    sizes: Sequence[int | None] | None,
    class_token: bool,
) -> FusedTowerConfig:
    first = members[0]
    if width is not None and (fusion == "concat" or width < 1):
        raise ConfigError(f"width {width}: only interleave and sum project, to 1 feature or more")
    if sizes is not None and len(sizes) != len(members):
        raise ConfigError(f"sizes: {len(sizes)} given for {len(members)} towers; None for those that need none")
    widths = [member.width for member in members]
    side = image_size or _crop(first)
    if side % first.patch:
        raise ConfigError(f"image_size {side} is not a multiple of the first tower's patch of {first.patch} pixels")
    entries = [_entry(m, size) for m, size in zip(members, sizes or [None] * len(members), strict=True)]
    return FusedTowerConfig(
        members=entries,
        fusion=fusion,
        hidden_size=sum(widths) if fusion == "concat" else width or max(widths),
        patch_size=first.patch,
        image_size=side,
        image_mean=entries[0]["mean"],
        image_std=entries[0]["std"],
        class_token=class_token,
    )


def _entry(tower: Tower, size: int | None) -> Member:
    if size is not None and size < tower.patch:
        raise ConfigError(f"{tower.name}: size {size} is less than its patch of {tower.patch} pixels")
    mean = getattr(tower.processor, "image_mean", None) or IMAGENET_MEAN
    std = getattr(tower.processor, "image_std", None) or IMAGENET_STD
    return {"config": tower.model.config.to_diff_dict(), "mean": list(mean), "std": list(std), "size": size}


def _crop(tower: Tower) -> int:
    """What its processor cuts, else its native size, down to a multiple of the patch."""
    crop = getattr(tower.processor, "crop_size", None) or getattr(tower.processor, "size", None) or {}
    native = getattr(tower.model.config, "image_size", 224)
    side = crop.get("height") or (native if isinstance(native, int) else native[0])
    return int(side) // tower.patch * tower.patch
