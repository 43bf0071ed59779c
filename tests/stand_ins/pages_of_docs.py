"""The blocks of a page of docs, and what their comments change."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

FENCE = re.compile(r"(?:^<!-- test: (?P<test>[^\n]*) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
SHORT = shlex.split("--steps 2 --batch-size 4 --workers 0 --head.prototypes 64 --monitor.knn-images 40")
SHORTENED = ("pretrain", "demo", "eval", "compare-objectives")
OURS = re.compile(r"(?:^|\s)(?:dino-tower (?P<command>[\w-]+)|-m dino_tower\.(?P<module>\w+))(?P<words>.*)")


@dataclass
class Block:
    """One fenced block and what its comment asks for."""

    kind: str
    text: str
    line: int
    adds: list[str] = field(default_factory=list)
    swaps: dict[str, str] = field(default_factory=dict)
    settings_only: bool = False
    setup: str = ""
    file: str = ""
    not_run: str = ""


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, comments read. Raises ValueError for a comment that is not understood."""
    found = []
    for match in FENCE.finditer(page):
        block = Block(match["kind"], match["text"], page[: match.start()].count("\n") + 1)
        for part in (match["test"] or "").split("; "):
            if part == "short":
                block.adds += SHORT
            elif part.startswith("with "):
                block.adds += shlex.split(part.removeprefix("with "))
            elif part == "settings only":
                block.settings_only = True
            elif part.startswith("setup: "):
                block.setup = part.removeprefix("setup: ")
            elif part.startswith("file "):
                block.file = part.removeprefix("file ")
            elif part.startswith("not run: "):
                block.not_run = part.removeprefix("not run: ")
            elif " is " in part:
                old, new = part.split(" is ")
                block.swaps[old] = new
            elif part:
                raise ValueError(f"line {block.line}: {part!r} says nothing to this test")
        for old, new in block.swaps.items():
            text = re.sub(rf"(?<![\w./~-]){re.escape(old)}(?![\w-])", new, block.text)
            if text == block.text:
                raise ValueError(f"line {block.line}: there is no {old!r} to stand for {new!r}")
            block.text = text
        found.append(block)
    return found


def commands(text: str) -> list[str]:
    """The commands of a bash block, one each: continued lines joined, comments and empty lines left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def shorten(command: str, adds: list[str]) -> str:
    """`command` with more flags, if it is one of ours that trains; a flag it has already takes the new value."""
    ours = OURS.search(command)
    if ours is None or not adds or (ours["command"] or ours["module"]) not in SHORTENED:
        return command
    for flag, value in zip(adds[::2], adds[1::2], strict=True):
        command, times = re.subn(rf"(?<=\s){re.escape(flag)} \S+", f"{flag} {value}", command)
        command += "" if times else f" {flag} {value}"
    return command
