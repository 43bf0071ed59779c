"""A real browser for tests of pages: Debian's chromium, driven over a pipe by its own protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower.explorer.page import explorer_page
from dino_tower.explorer.pictures import Sight, write_pictures

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--disable-extensions", "--mute-audio", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One page. `requests` are the addresses it asked for, data: URIs left out; `errors` what its scripts threw."""

    def __init__(self, profile: Path) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program, "these tests need chromium: apt-get install chromium (make test does it)"
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The browser speaks on descriptors 3 and 4, whatever numbers the pipes were born with.
        command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._unread, self._count, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; events that arrive meanwhile are noted."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while True:
            answer = self._next(until)
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Show a file at a size, in the light or the dark scheme, and wait until it stands."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + 60
        while self.run(f"document.readyState + location.pathname.endsWith({json.dumps(path.name)})") != "completetrue":
            assert time.monotonic() < until, "the page did not load"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def point(self, x: float, y: float, kind: str = "mouseMoved") -> None:
        """Move the mouse, or press and release it (kind "click"), at a place of the window."""
        kinds = ("mousePressed", "mouseReleased") if kind == "click" else (kind,)
        for one in kinds:
            button = "left" if kind == "click" else "none"
            self.call("Input.dispatchMouseEvent", type=one, x=x, y=y, button=button, clickCount=int(kind == "click"))

    def screenshot(self, path: Path) -> None:
        """The whole page, beyond the window's height too, as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser."""
        for descriptor in (self._out, self._in):
            os.close(descriptor)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser did not answer in time"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser ended"
            self._unread += part
        message, self._unread = self._unread.split(b"\0", 1)
        event: dict[str, Any] = json.loads(message)
        if event.get("method") == "Network.requestWillBeSent":
            address = event["params"]["request"]["url"]
            self.requests += [] if address.startswith("data:") else [address]
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.errors.append(event["params"]["entry"]["text"])
        return event


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of a worker; each `open` starts on a fresh page."""
    running = Browser(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13}
GRIDS = {"wide": (8, 16), "tall": (15, 10), "square": (12, 12)}
SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# A sum over the pixels of each map that moves with every one of them.
PIXELS = """[...document.querySelectorAll('.sight canvas')].map(c => c.getContext('2d')
  .getImageData(0, 0, c.width, c.height).data.reduce((a, b, i) => (a * 31 + b + i) % 1000003, 7))"""


class Explorer:
    """The page of `show TOWER IMAGE...` over three made-up pictures, and the ways to handle it."""

    def __init__(self, browser: Browser, folder: Path) -> None:
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
def explorer(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    """The explorer of three pictures, written once."""
    return Explorer(browser, tmp_path_factory.mktemp("explorer"))
