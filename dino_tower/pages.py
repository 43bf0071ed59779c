"""Self-contained HTML pages: one file that opens from disk, on a phone, in the dark, and never asks the network."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from dino_tower.errors import ConfigError

# The page forbids itself every request: whatever is put into it later cannot fetch anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, body: str, styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> str:
    """A whole page around `body` (HTML). styles, scripts: names of further files of page_assets, after base.css."""
    css = "\n".join(asset(name) for name in ("base.css", *styles))
    js = "\n".join(asset(name) for name in scripts)
    icon = "data:image/svg+xml;base64," + base64.b64encode(asset("mark.svg").encode()).decode()
    values = {"title": escape(title), "policy": POLICY, "icon": icon, "css": css, "body": body, "js": js}
    whole = asset("page.html")
    head, *rest = whole.split("{{")  # not str.format: CSS and JavaScript are full of braces
    return head + "".join(values[part.split("}}", 1)[0]] + part.split("}}", 1)[1] for part in rest)


def write_page(path: str | Path, text: str) -> Path:
    """Write the page complete or not at all. Raises ConfigError if it cannot be written there."""
    target = Path(path)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise ConfigError(f"cannot write the page {str(target)!r}: {error.strerror}") from None
    return target


def asset(name: str) -> str:
    """A text file of page_assets."""
    return (files("dino_tower") / "page_assets" / name).read_text(encoding="utf-8")


def escape(text: object) -> str:
    """Any value as HTML text, safe inside attributes too."""
    return html.escape(str(text), quote=True)


def json_block(identity: str, data: Any) -> str:
    """Data for a script: a JSON element that no text in the data can close early."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escape(identity)}">{text}</script>'


def data_uri(picture: Image.Image, quality: int = 84, largest: int = 320) -> str:
    """The picture inside the page: WebP, lossless where that is the smaller one (flat colours), else lossy.

    largest: pixels of the longer side, beyond which it is scaled down.
    """
    shown = picture.convert("RGB")
    if max(shown.size) > largest:
        shown.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    encoded = []
    for options in ({"quality": quality, "method": 4}, {"lossless": True, "method": 3}):
        buffer = io.BytesIO()
        shown.save(buffer, "WEBP", **options)
        encoded.append(buffer.getvalue())
    return "data:image/webp;base64," + base64.b64encode(min(encoded, key=len)).decode()


def number_text(value: float, unit: str = "") -> str:
    """A number as people read it: 57.1 %, 0.0421, 5.0e-4, 1,204. unit "%": value is a share, 0..1."""
    if not math.isfinite(value):
        return "n/a"
    if unit == "%":
        return f"{100 * value:.1f} %"
    size = abs(value)
    if size == 0:
        text = "0"
    elif size < 1e-3:
        text = f"{value:.1e}".replace("e-0", "e-")
    elif size < 2:
        text = f"{value:.4g}"
    elif size < 100:
        text = f"{value:.2f}"
    else:
        text = f"{value:,.0f}"
    return f"{text} {unit}".strip()


def duration_text(seconds: float) -> str:
    """40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {int(seconds % 3600 // 60)} min"
    return f"{hours // 24} d {hours % 24} h"
