"""Which column of a table holds the image, the label and the caption: the one named by the user, else the usual one."""

from __future__ import annotations

from collections.abc import Sequence

from dino_tower.errors import ConfigError, unknown

USUAL = {
    "image": ("image", "img", "jpg", "png", "path", "file", "filename", "file_name", "filepath", "image_path"),
    "label": ("label", "labels", "class", "class_name", "category", "cls", "target", "fine_label"),
    "caption": ("caption", "captions", "text", "description", "sentence"),
}


def find_column(role: str, wanted: str | None, columns: Sequence[str], where: str) -> str | None:
    """The column that plays `role` ("image", "label" or "caption"), or None where nothing fits and nothing was asked.

    Raises:
        ConfigError: `wanted` is not a column; the line lists the columns and the nearest one.
    """
    if wanted is not None:
        if wanted not in columns:
            raise unknown("column", wanted, columns, f"{where}, --source.{role}")
        return wanted
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name] for name in USUAL[role] if name in lower), None)


def image_column(wanted: str | None, columns: Sequence[str], where: str) -> str:
    """As `find_column` for the image, which there must be; a single column is the image."""
    found = find_column("image", wanted, columns, where)
    if found is None and len(columns) == 1:
        return columns[0]
    if found is None:
        raise ConfigError(
            f"{where}: which column holds the images? Name it with --source.image; choices: {', '.join(columns)}"
        )
    return found
