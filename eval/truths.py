"""The pictures and truths that stand beside what the towers made of them, drawn once for each task and data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dino_tower.checkpoint import read_json, replace_text
from dino_tower.eval.cache import key_of
from dino_tower.eval.task import Split, Task, kept_ids

UNITS = "units.json"


def truth_folder(output: Path, data: str, task: str) -> Path:
    """Where they are."""
    return output / "truths" / key_of({"data": data, "task": task})[:12]


def write_truths(output: Path, task: Task, data: Split, ids: list[str], labels: str) -> None:
    """NNN-picture.png and NNN-truth.png of the units that are shown, and units.json with their names.

    labels: a hash of the truth; what was drawn of other units (another --limit) or another truth is drawn anew.
    """
    if task.truth is None:
        return
    folder, units = truth_folder(output, data.test.name, task.name), kept_ids(ids)
    of = key_of({"units": units, "labels": labels})
    if _drawn_of(folder) == of:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    drawn = task.truth(data, units)
    units = [unit for unit in units if unit in drawn]
    for i, unit in enumerate(units):
        picture, truth = drawn[unit]
        picture.save(folder / f"{i:03d}-picture.png")
        truth.save(folder / f"{i:03d}-truth.png")
    replace_text(folder / UNITS, json.dumps({"units": units, "of": of}) + "\n")


def _drawn_of(folder: Path) -> str | None:
    """None where nothing was drawn, or nobody noted of what."""
    if not (folder / UNITS).is_file():
        return None
    found: str | None = read_json(folder / UNITS).get("of")
    return found
