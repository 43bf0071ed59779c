"""The pictures and truths that stand beside what the towers made of them, drawn once for each task and data set."""

from __future__ import annotations

import json
from pathlib import Path

from dino_tower.checkpoint import replace_text
from dino_tower.eval.cache import key_of
from dino_tower.eval.task import Split, Task, kept_ids


def truth_folder(output: Path, data: str, task: str) -> Path:
    """Where they are."""
    return output / "truths" / key_of({"data": data, "task": task})[:12]


def write_truths(output: Path, task: Task, data: Split, ids: list[str]) -> None:
    """NNN-picture.png and NNN-truth.png of the units that are shown, and units.json with their names."""
    folder = truth_folder(output, data.test.name, task.name)
    if task.truth is None or (folder / "units.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    units = kept_ids(ids)
    drawn = task.truth(data, units)
    units = [unit for unit in units if unit in drawn]
    for i, unit in enumerate(units):
        picture, truth = drawn[unit]
        picture.save(folder / f"{i:03d}-picture.png")
        truth.save(folder / f"{i:03d}-truth.png")
    replace_text(folder / "units.json", json.dumps({"units": units}) + "\n")
