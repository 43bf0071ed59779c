"""Files in and out of `dino-tower show`: which pictures were meant, and a directory that nobody else's files are in."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from dino_tower.errors import ConfigError
from dino_tower.images import EXTENSIONS

LIST = "show.json"  # names what we wrote, so that we replace nothing else


def find_images(images: Sequence[str | Path]) -> list[Path]:
    """The pictures under files and folders, in the order given, those of a folder by name; each once.

    A file is taken whatever its name; of a folder, searched to any depth, what ends like a picture and is not hidden.
    Raises ConfigError for a path that does not exist, a folder without pictures, or nothing at all.
    """
    if not images:
        raise ConfigError("no pictures given; name files or folders: dino-tower show TOWER IMAGE ...")
    found: dict[Path, Path] = {}
    for given in images:
        path = Path(given).expanduser()
        if not path.exists():
            raise _missing(path)
        inside = _pictures(path) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{str(given)!r}: a folder without pictures; read are {' '.join(sorted(EXTENSIONS))}")
        for one in inside:
            found.setdefault(one.resolve(), one)
    return list(found.values())


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """What each picture is called on the page: its name without ending, with its folder where two share it."""
    stems = Counter(path.stem for path in paths)
    return {
        path: path.stem if stems[path.stem] == 1 else f"{path.absolute().parent.name}/{path.name}" for path in paths
    }


class Folder:
    """A directory that `show` may write: new, empty, or holding nothing but what `show` wrote before."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if `path` is a file, or holds anything else."""
        self.path = path
        self.before: set[str] = set()
        if not path.is_dir():
            if path.exists() or path.is_symlink():
                raise ConfigError(f"--output {str(path)!r} is a file; name a directory")
            return
        there = {entry.name for entry in path.iterdir() if not entry.name.startswith(".show-")}
        if there:
            self.before = _listed(path) | {LIST}
            others = sorted(there - self.before)
            if others:
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                raise ConfigError(
                    f"--output {str(path)!r} holds what show did not write ({others[0]}{more}); name another directory"
                )

    def write(self, fill: Callable[[Path], None]) -> list[Path]:
        """Let `fill` write into a hidden folder, then put its files in place of the earlier ones; returns them.

        Whatever fails before that leaves the directory as it was. Raises ConfigError if it cannot be written.
        """
        made = [parent for parent in (self.path, *self.path.parents) if not parent.exists()]
        aside = self.path / f".show-{os.getpid()}"
        try:
            aside.mkdir(parents=True)
            fill(aside)
            names = sorted(entry.name for entry in aside.iterdir())
            (aside / LIST).write_text(json.dumps({"files": names}, indent=1))
            for name in [*names, LIST]:
                (aside / name).replace(self.path / name)
        except OSError as error:
            raise ConfigError(f"cannot write {str(self.path)!r}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            for parent in made:  # nothing half-written stays, not even a folder
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
        for name in self.before - set(names) - {LIST}:
            (self.path / name).unlink(missing_ok=True)
        return [self.path / name for name in names]


def _listed(folder: Path) -> set[str]:
    try:
        listed = json.loads((folder / LIST).read_text())["files"]
        return {name for name in listed if isinstance(name, str) and Path(name).name == name}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _pictures(folder: Path) -> list[Path]:
    found = []
    for here, folders, names in os.walk(folder):  # links to folders are not followed
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(here, name)
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return found


def _missing(path: Path) -> ConfigError:
    try:
        near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.5)
    except OSError:
        near = []
    hint = f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""
    return ConfigError(f"no picture or folder {str(path)!r}{hint}")
