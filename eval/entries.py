"""What is kept of one task on one tower: enough to form every interval and comparison again, in any later process.

An entry is a pair of files in OUTPUT/entries: KEY.npz holds what each unit added to each score (numerators and
denominators, the seeds side by side), KEY.json the rest. KEY is a hash of everything that the numbers depend on, so
that an interrupted benchmark finds what it had finished, and a changed tower or setting does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino_tower.checkpoint import replace_text
from dino_tower.errors import ConfigError
from dino_tower.eval.stats import Parts
from dino_tower.eval.task import Outcome


@dataclass(frozen=True)
class Entry:
    """One task, data set, tower, column and layer.

    parts: {metric: what each unit added, a column a class and seed}. seeds: {metric: the score of each seed}.
    role: "tower", "random" (an untrained twin), "raw" (pixels) or "constant" (the majority class); of: the tower that
    a twin belongs to. reason: why there is no score ("n/a"), empty otherwise. data, task, column, layer: names.
    pictures: {unit id: file below OUTPUT}. chosen: what was chosen, a list with one entry a seed.
    """

    key: str
    data: str
    task: str
    tower: str
    role: str
    of: str
    column: str
    layer: str
    parts: Mapping[str, Parts] = field(default_factory=dict)
    ids: Sequence[str] = ()
    seeds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    chosen: Sequence[Mapping[str, Any]] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""


def joined_seeds(outcomes: Sequence[Outcome]) -> tuple[dict[str, Parts], dict[str, list[float]]]:
    """The parts of several seeds side by side, whose score is the mean of the seeds' scores, and those scores.

    A score is the mean over columns of ratios of sums; the seeds' columns have the same units, so that a resample
    draws a unit in all of them at once.
    """
    from dino_tower.eval.stats import score

    parts, values = {}, {}
    for name in outcomes[0].parts:
        each = [outcome.parts[name] for outcome in outcomes]
        values[name] = [score(one) for one in each]
        parts[name] = Parts(
            np.concatenate([one.numerator for one in each], 1), np.concatenate([one.denominator for one in each], 1)
        )
    return parts, values


def write_entry(output: Path, entry: Entry) -> None:
    """Both files; the JSON last, whose presence makes the entry whole."""
    folder = output / "entries"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"{name}/{part}": array for name, parts in entry.parts.items() for part, array in parts._asdict().items()}
    temporary = folder / f".{entry.key}.npz"
    np.savez_compressed(temporary, ids=np.array(list(entry.ids), dtype=np.str_), **arrays)
    temporary.rename(folder / f"{entry.key}.npz")
    facts = {name: value for name, value in asdict(entry).items() if name not in ("parts", "ids")}
    facts["metrics"] = list(entry.parts)
    replace_text(folder / f"{entry.key}.json", json.dumps(facts, indent=1) + "\n")


def read_entry(output: Path, key: str) -> Entry | None:
    """A finished entry, or None. Raises ConfigError for a file that is damaged."""
    file = output / "entries" / f"{key}.json"
    if not file.is_file():
        return None
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
            parts = {
                name: Parts(arrays[f"{name}/numerator"], arrays[f"{name}/denominator"]) for name in facts.pop("metrics")
            }
            ids = [str(one) for one in arrays["ids"]]
        return Entry(**facts, parts=parts, ids=ids)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: damaged ({type(error).__name__}); remove it, and it is computed again") from None


def write_pictures(output: Path, key: str, pictures: Mapping[str, Image.Image]) -> dict[str, str]:
    """{unit id: file below output}, one PNG each."""
    folder = output / "pictures" / key
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, (unit, picture) in enumerate(pictures.items()):
        picture.save(folder / f"{number:03d}.png")
        found[unit] = f"pictures/{key}/{number:03d}.png"
    return found
