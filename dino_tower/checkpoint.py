"""Directories that are complete or absent: written aside, flushed to disk, renamed.

Weights are safetensors, everything else is JSON. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dino_tower.errors import ConfigError

STEP = re.compile(r"step-(\d+)")


def write_atomically(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder beside `target`, then make it `target` in one rename.

    Whatever kills the process leaves either the whole of `target` or nothing under that name. An existing `target` is
    left alone: the run that was resumed would write the same.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        fill(aside)
        for path in [*aside.rglob("*"), aside]:
            _fsync(path)
        aside.rename(target)
        _fsync(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that readers see the old or the new text, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    _fsync(aside)
    aside.replace(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left aside."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints under `folder`, oldest first."""
    found = [p for p in folder.glob("step-*") if STEP.fullmatch(p.name) and (p / "state.json").is_file()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number in `step-N`."""
    match = STEP.fullmatch(checkpoint.name)
    if not match:
        raise ConfigError(f"{checkpoint}: a checkpoint is named step-N")
    return int(match[1])


def prune(folder: Path, keep_last: int, keep_every: int) -> None:
    """Delete all but the newest `keep_last` and those whose step is a multiple of `keep_every` (0: none of them)."""
    for path in checkpoints(folder)[:-keep_last]:
        if not keep_every or step_of(path) % keep_every:
            aside = path.with_name(f".{path.name}.old")  # no reader may meet a half-deleted checkpoint
            path.rename(aside)
            shutil.rmtree(aside)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file."""
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ConfigError naming it when it is missing or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as safetensors: {' '.join(str(error).split())}") from None


def tensor_names(path: Path) -> set[str]:
    """Names in a safetensors file, without reading the tensors."""
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ConfigError naming the file when it is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return value


class BackgroundWriter:
    """Writes one thing at a time beside the training; a failure surfaces at the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Start `write` after the one before has ended."""
        self.join()

        def work() -> None:
            try:
                write()
            except BaseException as error:  # raised again where the training can see it
                self._failure = error

        self._thread = threading.Thread(target=work, name="checkpoint-writer")
        self._thread.start()

    def join(self) -> None:
        """Wait for the writing that is under way; raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
