"""The questions about the built-in scenes (`dino_tower.scenes.questions`) as conversations to train a VLM on."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.scenes import make_scene
from dino_tower.scenes.questions import questions_about


def write_scene_questions(
    folder: str | Path,
    count: int,
    level: str = "hard",
    split: str = "train",
    blind: bool = False,
    size: int | None = None,
) -> Path:
    """Pictures and talk.json, in LLaVA's format, of `count` scenes; returns the JSON file.

    A scene whose questions are several becomes several conversations: a later answer cannot lean on an earlier one.
    Each has its "kind". blind: the same questions without pictures, the control of what words alone can tell.
    Raises ConfigError for a folder that is not empty, and as `make_scene` does.
    """
    home = Path(folder)
    if home.exists() and any(home.iterdir()):
        raise ConfigError(f"{home} is not empty; name a new folder")
    home.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(count):
        scene = make_scene(level, index, split, size)
        picture = f"{index:06d}.png"
        if not blind:
            Image.fromarray(scene.image).save(home / picture)
        for question in questions_about(scene, level, index):
            turns = [
                {"from": "human", "value": question.text if blind else f"<image>\n{question.text}"},
                {"from": "gpt", "value": question.answer},
            ]
            shown = {} if blind else {"image": picture}
            entry = {"id": f"{split} {index} {question.kind}", "kind": question.kind, "conversations": turns}
            entries.append(entry | shown)
    file = home / "talk.json"
    file.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return file
