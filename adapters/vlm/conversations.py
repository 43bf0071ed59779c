"""Conversations in LLaVA's format: read, and whatever is wrong with one said in a line, before anything is trained.

    [{"id": "7", "image": "birds/7.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A wren."}]}, ...]

`image` may be a list, and may be left out; each picture has its "<image>" in what the human says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_tower.errors import ConfigError, unknown

IMAGE = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Conversation:
    """name: file and place, for messages. images: paths. turns: (role, text), role as chat templates have it.
    kind: the entry's "kind", if it has one: what results are reported by."""

    name: str
    images: tuple[Path, ...]
    turns: tuple[tuple[str, str], ...]
    kind: str = ""

    def messages(self, until: int | None = None) -> list[dict[str, str]]:
        """The first `until` turns (default: all) as a chat template takes them."""
        return [{"role": role, "content": text} for role, text in self.turns[:until]]


def read_conversations(files: Sequence[str | Path], images: str | Path | None = None) -> list[Conversation]:
    """All conversations of JSON or JSON-lines files, in order.

    images: the folder that the pictures' paths begin in; default: the one of their file. Raises ConfigError for a file
    that cannot be read, and for the first conversation that cannot be used: which one, why, and how it should be.
    """
    found = [one for file in files for one in _of_file(Path(file), images)]
    if not found:
        raise ConfigError(f"{', '.join(map(str, files))}: no conversations")
    return found


def _of_file(file: Path, images: str | Path | None) -> Iterator[Conversation]:
    root = Path(images) if images is not None else file.parent
    if not root.is_dir():
        raise ConfigError(f"--images {root}: no such folder")
    for number, entry in enumerate(_entries(file)):
        if not isinstance(entry, dict):
            raise ConfigError(f"{file}: conversation {number} is {_kind(entry)}, not an object")
        marked = f" (id {entry['id']!r})" if "id" in entry else ""
        yield _conversation(entry, f"{file}: conversation {number}{marked}", root)


def _entries(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"--data {file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"--data {file}: cannot be read: {reason.lower()}") from None
    try:
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--data {file}: not JSON: {error}") from None
    if not isinstance(entries, list):
        raise ConfigError(f"--data {file}: {_kind(entries)}, not a list of conversations")
    return entries


def _conversation(entry: dict[str, Any], name: str, root: Path) -> Conversation:
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise ConfigError(f"{name}: no 'conversations' in it, a list of turns")
    spoken = tuple(_turn(turn, name) for turn in turns)
    roles = [role for role, _ in spoken if role != "system"]
    if any(role == "system" for role, _ in spoken[1:]):
        raise ConfigError(f"{name}: 'system' may come first only")
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise ConfigError(f"{name}: the turns are not human, gpt, human, gpt, ... to an answer at the end")
    given = entry.get("image", entry.get("images")) or []
    paths = [given] if isinstance(given, str) else given
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f"{name}: 'image' is {_kind(given)}, not a path or a list of paths")
    asked = sum(text.count(IMAGE) for role, text in spoken if role == "user")
    if any(IMAGE in text for role, text in spoken if role != "user"):
        raise ConfigError(f"{name}: {IMAGE} in what gpt or system says; pictures belong to the human's turns")
    if asked != len(paths):
        raise ConfigError(f"{name}: {asked} {IMAGE} in its text, and {len(paths)} pictures in 'image'")
    for path in paths:
        if not (root / path).is_file():
            raise ConfigError(f"{name}: no picture {path!r} in {root}")
    return Conversation(name, tuple(root / path for path in paths), spoken, str(entry.get("kind", "")))


def _turn(turn: Any, name: str) -> tuple[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
        raise ConfigError(f"{name}: a turn is {{'from': 'human' or 'gpt', 'value': text}}, not {str(turn)[:60]!r}")
    if turn["from"] not in ROLES:
        raise unknown("speaker", turn["from"], ("human", "gpt", "system"), name)
    return ROLES[turn["from"]], turn["value"]


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "a truth value",
    }
    return names.get(type(value), "null")
