"""DIR/comparison.json: what a comparison has settled: the same command goes on with it, another one is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dino_tower.checkpoint import read_json, replace_text
from dino_tower.compare.settings import Comparison
from dino_tower.errors import ConfigError

FILE = "comparison.json"


@dataclass
class Noted:
    """Of one objective. words: of its trainings; gflops of training on one picture; network: which one is benchmarked;
    steps of each training, None until they are known (equal time)."""

    words: list[str]
    preset: str
    gflops: float = 0.0
    network: str = ""
    steps: int | None = None


@dataclass
class Notes:
    """trained_by: see `Comparison.trained_by`."""

    trained_by: dict[str, Any]
    objectives: dict[str, Noted] = field(default_factory=dict)

    def write(self, output: Path) -> None:
        """Into DIR, whole or not at all."""
        output.mkdir(parents=True, exist_ok=True)
        replace_text(output / FILE, json.dumps({"format": 1, **asdict(self)}, indent=1) + "\n")


def read_notes(asked: Comparison) -> Notes:
    """Of the comparison in DIR, or new ones. Raises ConfigError for a DIR of something else or of another one."""
    output = Path(asked.output)
    wanted = json.loads(json.dumps(asked.trained_by()))
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; name a directory")
    if not (output / FILE).is_file():
        if output.is_dir() and any(output.iterdir()):
            raise ConfigError(f"--output {output} holds something that is no comparison; name a new directory")
        return Notes(wanted)
    kept = read_json(output / FILE)
    if kept.get("format") != 1:
        raise ConfigError(f"{output / FILE}: format {kept.get('format')!r}; this release reads 1: name a new directory")
    notes = Notes(kept["trained_by"], {name: Noted(**one) for name, one in kept["objectives"].items()})
    for name, new in wanted.items():
        if (old := notes.trained_by.get(name)) != new:
            raise ConfigError(
                f"--output {output}: this comparison was trained with {name} {_said(old)}, not {_said(new)}; "
                "give the same to go on, or name a new directory"
            )
    return notes


def _said(value: object) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
