"""The door to `pretrain`: settings, checks and starts of runs that are then trained in processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dino_tower.compare.settings import COMMON, RANDOM, Comparison
from dino_tower.config import differences
from dino_tower.errors import ConfigError, unknown

if TYPE_CHECKING:
    from dino_tower.sources import Source


class Recipe(NamedTuple):
    """How one objective is trained: the words of `dino-tower pretrain` (without data, seed, length and output), the
    settings that they come to (a `pretrain` Config), and the preset under them."""

    objective: str
    words: tuple[str, ...]
    config: Any
    preset: str


def objectives() -> tuple[str, ...]:
    """Every objective that there is."""
    from dino_tower.pretrain.objectives.settings import OBJECTIVES

    return tuple(OBJECTIVES)


def recipe_of(asked: Comparison, objective: str) -> Recipe:
    """The objective's own preset with architecture, crops and batch of the common one. Raises ConfigError.

    An objective whose preset has no local views gets none: it would not look at them, and cutting them takes time.
    """
    from dino_tower.pretrain.config import load_preset, read_config

    preset = preset_of(objective, asked.preset, asked.recipes)
    below, common = load_preset(preset), load_preset(asked.preset)
    words = ["--preset", preset, "--objective", objective]
    for key, old, new in differences(below, common):
        if _among(key, COMMON) and not _among(key, asked.own) and not (key == "crops.locals" and old == 0):
            words += as_words(key, new)
    words = merged(words, ["--monitor.minutes", "0", "--monitor.tracker", "none"])
    words = merged(merged(words, asked.words), asked.own_words.get(objective, ()))
    try:
        config = read_config([*words, "--data", *asked.data, "--output", asked.output, "--steps", "1"])
    except ConfigError as error:
        raise ConfigError(f"{objective}: {error}") from None
    return Recipe(objective, tuple(words), config, preset)


def _among(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def preset_of(objective: str, common: str, recipes: str | None) -> str:
    """OBJECTIVE_cpu beside dino_cpu, ibot_vits16 beside dino_vits16; the common one where there is none.

    recipes: another end of the name. Raises ConfigError where no preset has it.
    """
    from dino_tower.pretrain.config import preset_names

    if recipes is not None and not any(name.endswith(f"_{recipes}") for name in preset_names()):
        raise unknown("end of presets' names", recipes, {name.partition("_")[2] for name in preset_names()} - {""})
    named = f"{objective}_{recipes or common.partition('_')[2]}"
    return named if named in preset_names() else common


def as_words(key: str, value: object) -> list[str]:
    """A setting as it is typed."""
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{key.replace('_', '-')}", *(str(one).lower() for one in values)]  # none, true, 0.5, vitt8


def merged(words: Sequence[str], over: Sequence[str]) -> list[str]:
    """Words of a command line; for the same setting those of `over` alone, since a repeated one would collect."""
    given = {_key(word) for word in over if word.startswith("--")}
    kept: list[str] = []
    keep = True
    for word in words:
        if word.startswith("--"):
            keep = _key(word) not in given
        if keep:
            kept.append(word)
    return [*kept, *over]


def _key(word: str) -> str:
    return word.partition("=")[0].replace("-", "_")


def controls_of(recipes: Sequence[Recipe]) -> dict[str, str]:
    """{objective: its control}: one untrained group for all, unless --own or --for gives them unlike networks."""
    networks = {
        one.objective: repr((one.config.arch, one.config.model, one.config.crops.global_size)) for one in recipes
    }
    if len(set(networks.values())) == 1:
        return dict.fromkeys(networks, RANDOM)
    # by what they are, not by their order: a folder of that name never holds another network
    digests = {name: blake2b(network.encode(), digest_size=3).hexdigest() for name, network in networks.items()}
    return {one.objective: f"{RANDOM}-{one.config.arch}-{digests[one.objective]}" for one in recipes}


def cautions_of(recipes: Sequence[Recipe]) -> list[str]:
    """What a reader of the numbers must know of single objectives, a sentence each."""
    return [
        "I-JEPA's class token is asked for by no loss: its scores that read one (k-NN, attention, probes of the whole "
        "picture) say little of it; its patches are not concerned."
        for one in recipes
        if one.objective == "ijepa" and not one.config.arch.endswith("_siglip")  # the class without one
    ]


def open_data(recipe: Recipe) -> Source:
    """What all recipes are trained on, its first pictures read."""
    from dino_tower.pretrain.beforehand import open_data

    return open_data(recipe.config)


def facts_of(recipe: Recipe, source: Source) -> tuple[float, str]:
    """(GFLOP of training on one picture, the network to benchmark: "teacher" or "student").

    Raises ConfigError where the objective cannot be trained on the data (no captions, no labels, too few pictures).
    """
    from dino_tower.pretrain.beforehand import facts_of

    try:
        return facts_of(recipe.config, source)
    except ConfigError as error:
        raise ConfigError(f"{recipe.objective}: {error}") from None


def write_untrained(recipe: Recipe, source: Source, seed: int, folder: Path) -> None:
    """The network that every objective's training with this seed starts from."""
    from dataclasses import replace

    from dino_tower.pretrain.beforehand import write_untrained

    write_untrained(replace(recipe.config, seed=seed), source, folder)
