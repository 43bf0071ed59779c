"""skipped.jsonl: every image that could not be read, once, with the reason; all ranks append to the same file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from dino_tower.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows, where one process trains
    fcntl = None  # type: ignore[assignment]


class TooManySkipped(ConfigError):
    """More images than `max_skipped` could not be read."""

    one_process = True


class SkippedLog:
    """The ids recorded so far, in this run directory, by any rank and before any restart.

    `limit`: a number of images, or below 1 a share of `total`; one more raises TooManySkipped. path None: in memory.
    """

    def __init__(self, path: Path | None, limit: float, total: int) -> None:
        if limit < 0:
            raise ConfigError(f"max_skipped {limit}: give a number of images, or a share of them below 1")
        self.path, self.total = path, total
        self.limit = int(limit * total) if limit < 1 else int(limit)
        self.ids: set[str] = set()
        self._offset = 0
        if path is not None and path.exists():
            with path.open("rb") as file:
                self._catch_up(file)

    def record(self, skipped: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Append the (id, reason) pairs that are new, and return them.

        Raises:
            TooManySkipped: the file now lists more than the limit.
        """
        unseen = {name: reason for name, reason in skipped if name not in self.ids}
        if not unseen:
            return []
        if self.path is None:
            fresh = unseen
        else:
            with self.path.open("a+b") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes
                file.seek(self._offset)
                torn = self._catch_up(file)
                fresh = {name: reason for name, reason in unseen.items() if name not in self.ids}
                lines = "".join(json.dumps({"id": name, "reason": reason}) + "\n" for name, reason in fresh.items())
                file.write((b"\n" if torn else b"") + lines.encode())
                file.flush()
                self._offset = file.seek(0, os.SEEK_END)
        self.ids.update(fresh)
        if len(self.ids) > self.limit:
            name, reason = list(unseen.items())[-1]
            where = f"; all are listed in {self.path}" if self.path else ""
            raise TooManySkipped(
                f"{len(self.ids)} of {self.total} images could not be read, and max_skipped allows {self.limit}"
                f"; the last: {name}: {reason}{where}. Repair or remove them, or raise --faults.max-skipped"
            )
        return list(fresh.items())

    def _catch_up(self, file: Iterable[bytes]) -> bool:
        """Take in the lines from the offset on; True when the last one was cut off by a kill."""
        for line in file:
            if not line.endswith(b"\n"):
                return True
            self._offset += len(line)
            try:
                self.ids.add(json.loads(line)["id"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill cut off: its image will be met and recorded again
        return False
