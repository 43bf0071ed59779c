"""What the tests of faults share: processes to kill, photos to damage."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SERVER = Path(__file__).parent.parent / "setup" / "lives.py"


class Lives:
    """Starts runs as forks of a process that has torch loaded already, to kill, to wait for, to read what they said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._codes: dict[int, int | None] = {}
        self._outputs: dict[int, Path] = {}
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(SERVER)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def _ask(self, asked: dict[str, Any]) -> Any:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, *commands: dict[str, Any], env: dict[str, str] | None = None) -> int:
        """The process id of a child that does the commands (see setup/lives.py) one after the other."""
        output = self.folder / f"said-{len(self._codes)}"
        output.touch()
        child = self._ask({"start": commands, "env": env or {}, "output": str(output)})
        self._codes[child], self._outputs[child] = None, output
        return child

    def start_ranks(self, words: list[str], count: int, env: dict[str, str] | None = None, code: str = "") -> list[int]:
        """`count` processes of one run, with the variables that a launcher sets."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": port, **(env or {})}
        ranks = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        return [self.start({"words": words, "code": code}, env=rank) for rank in ranks]

    def poll(self, child: int) -> int | None:
        """Its exit code, None while it lives."""
        if self._codes[child] is None:
            self._codes[child] = self._ask({"poll": child})
        return self._codes[child]

    def wait(self, child: int, seconds: float = 240) -> int:
        """Its exit code, when it has ended."""
        end = time.monotonic() + seconds
        while self.poll(child) is None:
            assert time.monotonic() < end, f"it did not end in {seconds} s: {self.said(child)[-2000:]}"
            time.sleep(0.02)
        return self._codes[child]

    def said(self, child: int) -> str:
        """What it has printed so far, stdout and stderr."""
        return self._outputs[child].read_text()

    def kill(self, *children: int) -> None:
        """SIGKILL, and wait until they are gone."""
        for child in children:
            if self.poll(child) is None:
                os.kill(child, signal.SIGKILL)
        for child in children:
            self.wait(child)

    def close(self) -> None:
        """End all of them."""
        self.kill(*self._codes)
        self._server.communicate()


@pytest.fixture(scope="session")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    running = Lives(tmp_path_factory.mktemp("lives"))
    yield running
    running.close()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's own: root's tests take that user's place."""
    place = Path(tempfile.mkdtemp(prefix="dino-tower-test-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def photo(seed: int, width: int, height: int) -> Image.Image:
    """A picture with the spectrum and the edges of a photo: coloured 1/f noise and discs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, height, width))) / frequency**1.3, s=(height, width))
    pixels = np.moveaxis(noise / noise.std((1, 2), keepdims=True), 0, -1) * 40 + rng.integers(60, 190, 3)
    for _ in range(6):
        x, y, radius = rng.integers(0, width), rng.integers(0, height), rng.uniform(0.05, 0.25) * width
        disc = np.hypot(np.arange(height)[:, None] - y, np.arange(width)[None] - x) < radius
        pixels[disc] = 0.4 * pixels[disc] + 0.6 * rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.fixture(scope="session")
def write_photos() -> Callable[..., Path]:
    """write_photos(folder, count, size=(96, 72)) -> the folder with count JPEGs 00000.jpg, 00001.jpg, ..."""

    def write(folder: Path, count: int, size: tuple[int, int] = (96, 72)) -> Path:
        folder.mkdir(parents=True)
        for index in range(count):
            (folder / f"{index:05d}.jpg").write_bytes(encoded(photo(index, *size), "JPEG", quality=90))
        return folder

    return write
