"""Directories that are complete or absent: written aside, flushed to disk, renamed.

Weights are safetensors, everything else is JSON. Nothing is ever unpickled. A directory can carry the SHA-256 of its
files, so that what a disk or a copy damaged later is noticed, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from dino_tower.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

STEP = re.compile(r"step-(\d+)")
DIGESTS = "digests.json"


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
    try:
        aside.write_text(text)
        _fsync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete what a killed writer left aside."""
    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


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
            remove(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that no reader meets a half of it."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def write_digests(folder: Path) -> None:
    """Note the SHA-256 of every file under `folder` in its digests.json."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1))


def check_digests(folder: Path) -> None:
    """Raise ConfigError naming the first file under `folder` that is not the one that was written."""
    digests = read_json(folder / DIGESTS)
    for name, written in digests.items():
        path = folder / name
        try:
            damaged = _digest(path) != written
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {reason(error)}") from None
        if damaged:
            raise ConfigError(f"{path}: damaged: its contents are not what was written (SHA-256 in {DIGESTS})")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: Exception) -> str:
    """What the operating system had against it, in its own words, without the number and the path."""
    said = getattr(error, "strerror", None) or " ".join(str(error).split())
    return str(said)[:200].lower()


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file."""
    from safetensors.torch import save_file  # here and not above: whether a run can be resumed is said without torch

    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ConfigError naming it when it is missing or damaged."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as safetensors: {' '.join(str(error).split())}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ConfigError naming the file when it is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {reason(error)}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return value


class BackgroundWriter:
    """Writes one thing at a time beside the training. After a failure nothing more is written."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether a writing has failed so far; `join` raises what it raised."""
        return self._failure is not None

    def submit(self, write: Callable[[], None]) -> None:
        """Start `write` after the one before has ended."""
        self._wait()
        if self.failed:
            return

        def work() -> None:
            try:
                write()
            except BaseException as error:  # raised again where the training can see it
                self._failure = error

        self._thread = threading.Thread(target=work, name="checkpoint-writer")
        self._thread.start()

    def join(self) -> None:
        """Wait for the writing that is under way; raises what any of them raised."""
        self._wait()
        if self._failure is not None:
            raise self._failure

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
