"""Features on disk: memory-mapped, safe under two processes, no larger than asked for.

An entry is a directory named by a hash of all that its numbers depend on. It is filled aside and renamed, complete or
absent; a lock makes a second process wait and read instead of working twice. The entries that were read longest ago go
first when the limit is reached.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dino_tower.errors import ConfigError

META = "entry.json"


def default_root() -> Path:
    """`DINO_TOWER_CACHE`, else the user's cache folder."""
    given = os.environ.get("DINO_TOWER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given).expanduser() if given else Path(base).expanduser() / "dino-tower" / "features"


def key_of(facts: Mapping[str, Any]) -> str:
    """A hash of everything that the numbers depend on, as JSON."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


class Cache:
    """Entries below `root`, together at most `limit` bytes (more only if one benchmark needs more at one time)."""

    def __init__(self, root: str | Path | None = None, limit: int = 50 * 2**30) -> None:
        self.root = Path(root).expanduser() if root is not None else default_root()
        self.limit = limit
        self._used: set[str] = set()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"feature cache {self.root}: {error.strerror}; choose another with --cache") from None

    def path(self, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.root / key[:2] / key

    def find(self, key: str) -> Path | None:
        """The entry's directory, marked as read now; None if there is none."""
        found = self.path(key)
        try:
            os.utime(found / META)
        except OSError:
            return None
        self._used.add(key)
        return found

    def aside(self, key: str) -> Path:
        """An empty directory to fill, the same one in every process of a job. Call under `lock`."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f"{key}.partial")

    def begin(self, key: str) -> Path:
        """Make `aside` anew: what an interrupted run left there is dropped."""
        folder = self.aside(key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def finish(self, key: str, facts: Mapping[str, Any]) -> Path:
        """Give what was filled its name."""
        folder, target = self.aside(key), self.path(key)
        (folder / META).write_text(json.dumps(dict(facts), indent=1, default=str) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        self._used.add(key)
        self.shrink()
        return target

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one process of this machine at a time; released when a process dies."""
        with (self.root / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def shrink(self) -> None:
        """Remove the entries read longest ago until the rest fits; never one that this benchmark has used."""
        entries = []
        for meta in self.root.glob(f"??/*/{META}"):
            try:
                entries.append((meta.stat().st_mtime, meta.parent, _bytes(meta.parent)))
            except OSError:  # another process removed it
                continue
        total = sum(size for _, _, size in entries)
        for _, folder, size in sorted(entries):
            if total <= self.limit:
                return
            if folder.name in self._used:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
