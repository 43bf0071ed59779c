"""Fixtures of the pages' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower.explorer.page import explorer_page
from dino_tower.explorer.pictures import Sight, write_pictures

KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13}
GRIDS = {"wide": (8, 16), "tall": (15, 10), "square": (12, 12)}
SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# A sum over the pixels of each map that moves with every one of them.
PIXELS = """[...document.querySelectorAll('.sight canvas')].map(c => c.getContext('2d')
  .getImageData(0, 0, c.width, c.height).data.reduce((a, b, i) => (a * 31 + b + i) % 1000003, 7))"""


class Explorer:
    """The page of `show TOWER IMAGE...` over three made-up pictures, and the ways to handle it."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser, self.grids, self.sights = browser, list(GRIDS.values()), _sights()
        self.path = self.write(folder, self.sights)

    def write(self, folder: Path, sights: list[Sight]) -> Path:
        with pytest.MonkeyPatch.context() as small:  # the PNGs are not looked at here
            small.setattr("dino_tower.explorer.pictures.LARGE", 32)
            small.setattr("dino_tower.explorer.pictures.CELL", 32)
            views, start = write_pictures(folder, sights)
        path = folder / "explore.html"
        path.write_text(explorer_page("tiny", 14, sights, views, start, {"size": "As they are."}), encoding="utf-8")
        return path

    def start(
        self, state: str = "", width: int = 1280, height: int = 900, scheme: str = "light", path: Path | None = None
    ) -> None:
        """Open the page afresh with an address that ends in `state`."""
        path = path or self.path
        self.browser.open(path, width, height, scheme)
        self.browser.call("Page.navigate", url="about:blank")  # else only the address would change, not the page
        self.browser.requests.clear()
        self.browser.errors.clear()
        self.browser.call("Page.navigate", url=path.resolve().as_uri() + state)
        self.browser.run("document.readyState === 'complete' || new Promise(done => addEventListener('load', done))")
        self.settle()

    def settle(self) -> None:
        self.browser.run(SETTLED)

    def centre(self, picture: int, row: int, column: int) -> tuple[float, float]:
        """Where a patch is in the window."""
        h, w = self.grids[picture]
        x, y, width, height = self.browser.run(
            f"(() => {{ const box = document.querySelectorAll('.sight')[{picture}];"
            "box.scrollIntoView({block: 'center'});"
            "const b = box.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        return x + (column + 0.5) * width / w, y + (row + 0.5) * height / h

    def chosen(self) -> tuple[int, int, int]:
        """(picture, row, column) of the chosen patch."""
        self.settle()
        picture, patch = self.browser.run("[explorer.state.picture, explorer.state.patch]")
        return picture, *divmod(patch, self.grids[picture][1])

    def pixels(self) -> list[int]:
        """A number for each map that changes with its pixels."""
        return self.browser.run(PIXELS)

    def press(self, key: str, shift: bool = False) -> None:
        for kind in ("keyDown", "keyUp"):
            self.browser.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key],
                modifiers=8 if shift else 0,
            )  # fmt: skip

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        self.browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])


def _sights() -> list[Sight]:
    """A thing on a ground: the features of both, and noise."""
    rng, numbers = torch.Generator().manual_seed(0), np.random.default_rng(0)
    ground, figure = torch.randn(2, 40, generator=rng)
    found = []
    for name, (h, w) in GRIDS.items():
        thing = torch.zeros(h, w, dtype=torch.bool)
        thing[h // 4 : h // 2 + 1, w // 4 : w // 2 + 1] = True
        patches = torch.where(thing[..., None], figure, ground) + 0.5 * torch.randn(h, w, 40, generator=rng)
        attention = torch.rand(3, h, w, generator=rng) * (0.2 + thing)
        small = numbers.integers(0, 256, (h, w, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((20 * w, 20 * h), Image.Resampling.BICUBIC)
        found.append(Sight(f"{name} <b>", image, patches, attention / attention.sum((1, 2), keepdim=True)))
    return found


@pytest.fixture(scope="session")
def explorer(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    """The explorer of three pictures, written once."""
    return Explorer(browser, tmp_path_factory.mktemp("explorer"))
