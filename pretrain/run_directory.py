"""The directory of a run: config.yaml, log.jsonl, checkpoints/, latest, skipped.jsonl, pictures/."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from dino_tower.checkpoint import checkpoints, remove_leftovers, replace_text
from dino_tower.config import to_yaml
from dino_tower.errors import ConfigError
from dino_tower.pretrain.settings import Config


class RunDirectory:
    """What the main process writes; every other process uses the paths only."""

    def __init__(self, root: Path, main: bool) -> None:
        self.root = root
        self.main = main
        self.checkpoints = root / "checkpoints"
        self.skipped = root / "skipped.jsonl"
        self._log: IO[str] | None = None
        self._lock: IO[str] | None = None

    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        found = checkpoints(self.checkpoints)
        return found[-1] if found else None

    def open(self, config: Config) -> None:
        """Create the directory or take it over for a continuation. Main process only.

        Raises ConfigError when another process is writing this run.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = (self.root / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"--output {self.root}: another process is training this run") from None
        remove_leftovers(self.checkpoints)
        replace_text(self.root / "config.yaml", to_yaml(config))
        self._log = _append_whole_lines(self.root / "log.jsonl")

    def log(self, kind: str, step: int, **values: Any) -> None:
        """One row of log.jsonl; nothing on other processes."""
        if self._log is not None:
            row = {"kind": kind, "step": step, **values, "time": round(time.time(), 3)}
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()

    def close(self) -> None:
        """Let go of the log and the lock."""
        for file in (self._log, self._lock):
            if file is not None:
                file.close()


def _append_whole_lines(path: Path) -> IO[str]:
    """Open for appending; a line that a kill cut off is ended first, so that it takes no later one with it."""
    torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    file = path.open("a")
    if torn:
        file.write("\n")
    return file


def refuse_or_resume(config: Config) -> bool:
    """Whether the run in --output is to be continued (True) or a new one started (False).

    Raises ConfigError for a directory that holds anything when no --resume is given, and for --resume of a directory
    that does not exist or holds no run. `--resume auto`, implied after an elastic restart, starts or continues.
    """
    root = Path(config.output)
    if root.exists() and not root.is_dir():
        raise ConfigError(f"--output {root}: a file of that name exists")
    there = root.is_dir() and any(root.iterdir())
    is_run = (root / "config.yaml").is_file()
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    mode = "auto" if restarted and config.resume == "no" else config.resume
    if mode == "true" and not root.is_dir():
        raise ConfigError(f"--resume: there is no run in {root}")
    if there and not is_run:
        raise ConfigError(f"--output {root}: the directory holds something that is not a run; name a new one")
    if there and mode == "no":
        raise ConfigError(
            f"--output {root}: a run is there already; add --resume to continue it, or name a new directory"
        )
    return there
