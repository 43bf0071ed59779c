"""The directory of a run: config.yaml, log.jsonl, checkpoints/, latest, skipped.jsonl, pictures/."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

from safetensors import SafetensorError

from dino_tower.checkpoint import (
    checkpoints,
    prune,
    read_json,
    reason,
    remove,
    remove_leftovers,
    replace_text,
    step_of,
    write_atomically,
)
from dino_tower.config import to_yaml
from dino_tower.errors import ConfigError

LOCK, SETTINGS = ".lock", "config.yaml"
# Not the program's fault and not a network's: the disk is full or may not be written.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class RunSettings(Protocol):
    """What every run's settings say of its directory."""

    @property
    def output(self) -> str: ...

    @property
    def resume(self) -> str: ...


class RunDirectory:
    """What the main process writes; every other process uses the paths only.

    `failure`: why the log could no longer be written, if so. The loop asks for it, and all processes stop together.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.skipped = root / "skipped.jsonl"
        self.failure: ConfigError | None = None
        self._log: IO[str] | None = None
        self._lock: IO[str] | None = None

    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        found = checkpoints(self.checkpoints)
        return found[-1] if found else None

    def finished(self) -> int | None:
        """The number of steps of a run that has done them all, else None."""
        newest = self.newest()
        try:
            steps = read_json(newest / "state.json").get("steps") if newest is not None else None
        except ConfigError:
            return None  # damaged: `restore` says so, with what to do
        return steps if newest is not None and steps == step_of(newest) else None

    def open(self, config: RunSettings) -> None:
        """Create the directory or take it over for a continuation. Main process only.

        Raises ConfigError when another process is writing this run, or when it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / LOCK).open("w")
            try:
                # Not flock: that one passes to forked loader workers, who outlive a killed run by some seconds.
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"--output {self.root}: another process is training this run; wait until it has ended, or end it"
                ) from None
            remove_leftovers(self.root, f".{SETTINGS}.*")
            remove_leftovers(self.checkpoints, ".step-*")
            replace_text(self.root / SETTINGS, to_yaml(config))
            self._log = _append_whole_lines(self.root / "log.jsonl")
        except OSError as error:
            raise cannot_write(self.root, error) from None

    def log(self, kind: str, step: int, **values: Any) -> None:
        """One row of log.jsonl; nothing on other processes."""
        if self._log is None or self.failure is not None:
            return
        row = {"kind": kind, "step": step, **values, "time": round(time.time(), 3)}
        try:
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()
        except OSError as error:
            self.failure = cannot_write(self.root, error)

    def raise_failure(self) -> None:
        """Raise what the log met."""
        if self.failure is not None:
            raise self.failure

    def write_checkpoint(self, step: int, write: Callable[[Path], None], keep_last: int, keep_every: int) -> None:
        """checkpoints/step-N by `write`, `latest`, and the old ones pruned. For the background.

        Raises ConfigError, the checkpoints before being whole, when the disk is full or may not be written.
        """
        target = self.checkpoints / f"step-{step}"
        try:
            write_atomically(target, write)
            replace_text(self.root / "latest", f"{target.name}\n")
            prune(self.checkpoints, keep_last, keep_every)
        except (OSError, SafetensorError) as error:
            raise cannot_write(target, error, self.newest()) from None

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, which will be done again, otherwise. Main process only."""
        for path in checkpoints(self.checkpoints) if self._log is not None else ():
            if step_of(path) > step:
                remove(path)
            elif step_of(path) == step:
                replace_text(self.root / "latest", f"{path.name}\n")

    def close(self) -> None:
        """Let go of the log and the lock."""
        for file in (self._log, self._lock):
            if file is not None:
                try:
                    file.close()
                except OSError:
                    continue  # what a full disk did not take; the failure is known


def cannot_write(place: Path, error: Exception, newest: Path | None = None) -> ConfigError:
    """The error for a disk that is full, read-only or forbidden; `newest` is the last whole checkpoint."""
    kept = f", and go on with --resume: {newest} is whole" if newest is not None else ", or name another --output"
    return ConfigError(f"{place}: cannot be written: {reason(error)}; make room or change the permissions{kept}")


def _append_whole_lines(path: Path) -> IO[str]:
    """Open for appending; a line that a kill cut off is ended first, so that it takes no later one with it."""
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
    return path.open("a")


def refuse_or_resume(config: RunSettings) -> bool:
    """Whether the run in --output is to be continued (True) or a new one started (False).

    Raises ConfigError for a directory that holds anything when no --resume is given, and for --resume of a directory
    that does not exist or holds no run. `--resume auto`, implied after an elastic restart, starts or continues.
    """
    root = Path(config.output)
    try:
        if root.exists() and not root.is_dir():
            raise ConfigError(f"--output {root}: a file of that name exists; name another directory")
        # A run killed in its first moments leaves its lock and no settings yet: as good as an empty directory.
        there = root.is_dir() and any(
            path.name != LOCK and not path.name.startswith(f".{SETTINGS}.") for path in root.iterdir()
        )
        is_run = (root / SETTINGS).is_file()
    except OSError as error:
        raise ConfigError(f"--output {root}: {reason(error)}; name another directory") from None
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    mode = "auto" if restarted and config.resume == "no" else config.resume
    if mode == "true" and not root.is_dir():
        raise ConfigError(f"--resume: there is no run in {root}; leave --resume out to start one")
    if there and not is_run:
        raise ConfigError(f"--output {root}: the directory holds something that is not a run; name a new one")
    if there and mode == "no":
        raise ConfigError(
            f"--output {root}: a run is there already; add --resume to continue it, or name a new directory"
        )
    return there
