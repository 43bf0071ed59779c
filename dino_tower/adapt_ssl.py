"""`dino-tower adapt TOWER --task ssl`: a tower goes on learning without labels, by an adapter. `pretrain` does it.

It stands at the door because it joins two rooms: the words are those of `adapt`, the training is `pretrain`'s.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_tower.errors import ConfigError
from dino_tower.run.settings import saved_settings

HELP = """usage: dino-tower adapt TOWER --task ssl --data SOURCE --output DIR [--method lora] [--peft.rank N]
       [--peft.alpha A] [--peft.modules NAME ...] [--merge] [--size N] [--section.key value ...]

Self-distillation (preset dino_lora) whose student is the tower with an adapter; the teacher is the same tower with the
moving average of the adapter. --size: pixels of the global views, by default what the tower's processor cuts. Every
other flag is a setting of `dino-tower pretrain` (see `dino-tower pretrain --help`)."""
PRESET = "dino_lora"
LOCAL = 96 / 224  # side of a local view, by that of a global one
# words of `adapt` -> settings of `pretrain`
SAME = {
    "--tower": "--init-from", "--method": "--lora.method", "--size": "--crops.global-size",
    "--peft.rank": "--lora.rank", "--peft.alpha": "--lora.alpha", "--peft.modules": "--lora.modules",
}  # fmt: skip
Flags = dict[str, list[str]]


def main(argv: Sequence[str]) -> int:
    """Train, and with --merge write OUTPUT/merged; returns the exit code. Raises ConfigError."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
        return 0
    flags, merge = read_words(argv)
    from dino_tower.pretrain.command import main as pretrain
    from dino_tower.pretrain.config import read_config

    output = "".join(flags.get("--output", [])[:1])
    if saved_settings(output, "true" if _asks(flags, "--resume") else "no") is None:
        if "--init-from" not in flags:
            raise ConfigError("adapt: TOWER is missing: the tower to adapt, as in `dino-tower adapt TOWER --task ssl`")
        flags = {"--preset": [PRESET], "--lora.method": ["lora"]} | flags
        read_config(_words(flags))  # torch takes seconds to load: what is mistyped is told before
        flags = _as_the_tower_sees(flags) | flags
    code = pretrain(_words(flags))
    if merge and code == 0 and not _asks(flags, "--print-config") and os.environ.get("RANK", "0") == "0":
        merge_run(Path(output))
    return code


def read_words(argv: Sequence[str]) -> tuple[Flags, bool]:
    """The flags for `pretrain` with their values, and whether to merge. Raises ConfigError for what has no meaning."""
    words = ["--tower", *argv] if argv and not argv[0].startswith("-") else list(argv)
    flags: Flags = {}
    name = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word.partition("=")
            flag = flag.replace("_", "-")
            name = SAME.get(flag, flag)
            flags.setdefault(name, []).extend([value] if equals else [])
        elif not name:
            raise ConfigError(f"command line: {word!r} belongs to no flag; settings are given as --key value")
        else:
            flags[name].append(word)
    flags.pop("--task", None)
    method = flags.get("--lora.method", ["lora"])
    if method[:1] in (["none"], ["full"]):
        raise ConfigError(
            f"--method {method[0]}: --task ssl trains an adapter; a whole tower is trained by `dino-tower pretrain "
            "--init-from TOWER`"
        )
    odd = next((flag for flag in flags if flag.startswith("--peft.")), None)
    if odd is not None:
        choices = "--peft.alpha, --peft.modules, --peft.rank"
        raise ConfigError(f"command line: {odd}: --task ssl has no such setting; choices: {choices}")
    return flags, _flag(flags, "--merge")


def _flag(flags: Flags, name: str) -> bool:
    """Take a flag of ours out of the words; ConfigError for a value that is no truth."""
    values = flags.pop(name, ["false"])
    if values not in ([], ["true"], ["false"]):
        raise ConfigError(f"command line: {name}: {' '.join(values)!r} is neither true nor false")
    return values != ["false"]


def _asks(flags: Flags, name: str) -> bool:
    return name in flags and flags[name] not in (["no"], ["false"])


def _words(flags: Flags) -> list[str]:
    return [word for name, values in flags.items() for word in (name, *values)]


def _as_the_tower_sees(flags: Flags) -> Flags:
    """Sizes and normalisation of views by the tower's own processor. Raises ConfigError for what is no tower."""
    from dino_tower.tower import load_tower

    tower = load_tower(flags["--init-from"][0])
    processor: Any = tower.processor
    cut = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
    cut_to = (cut.get("height") or cut.get("shortest_edge") or 224) // tower.patch * tower.patch
    size = int(flags.get("--crops.global-size", [cut_to])[0])
    return {
        "--crops.global-size": [str(size)],
        "--crops.local-size": [str(max(1, round(size * LOCAL / tower.patch)) * tower.patch)],
        "--pixels.mean": [f"{v:.8g}" for v in processor.image_mean],
        "--pixels.std": [f"{v:.8g}" for v in processor.image_std],
    }


def merge_run(run: Path) -> float:
    """Write RUN/merged: the student with its adapter in its weights, a plain tower; an earlier one is kept.

    Returns the largest difference between their features. Raises ConfigError where it is above the tolerance.
    """
    from dino_tower.checkpoint import checkpoints
    from dino_tower.peft_adapter import MERGED, load_adapter, read_base, tower_below
    from dino_tower.peft_merging import write_merged
    from dino_tower.tower import load_tower

    if (run / MERGED).exists():
        return 0.0
    student = checkpoints(run / "checkpoints")[-1] / "student"
    tower = load_tower(tower_below(student))
    origin = (
        f"`{read_base(student).tower}` adapted to more pictures without labels by self-distillation with "
        "dino-tower, the adapter in its weights."
    )
    gap = write_merged(tower, load_adapter(tower.model, student), run / MERGED, origin)
    print(f"  {run / MERGED}    a plain tower, for any client")
    return gap
