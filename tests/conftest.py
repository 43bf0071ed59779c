"""Fixtures that every test may use, and the settings that keep results exact."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from browser import Browser
from PIL import Image
from vlm_parts import TEXT_SIZES

torch.set_num_threads(1)

# A run of seconds that still has every part of the real one: multi-crop, centring, schedules, head, checkpoints.
TINY: dict[str, str] = {
    "--preset": "demo",
    "--data": "scenes",
    "--batch-size": "8",
    "--workers": "0",
    "--model.width": "32",
    "--model.depth": "2",
    "--model.heads": "2",
    "--head.prototypes": "64",
    "--head.hidden": "32",
    "--head.bottleneck": "16",
    "--crops.global-size": "32",
    "--crops.local-size": "16",
    "--crops.locals": "2",
    "--compute.precision": "no",
    "--compute.cpu": "true",
    "--monitor.minutes": "0",
    "--monitor.tracker": "none",
    "--monitor.log-every": "1",
}


def tiny_command(*flags: str) -> list[str]:
    """TINY with `flags` in place of its own where they name the same setting."""
    given = {flag for flag in flags if flag.startswith("--")}
    return [word for key, value in TINY.items() if key not in given for word in (key, value)] + list(flags)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Two, of one size."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.fixture(scope="session")
def text_sizes() -> dict[str, Any]:
    """Arguments of a tiny language model's config."""
    return TEXT_SIZES


@pytest.fixture(scope="session")
def parity_train() -> Path:
    """Inputs and outputs of the authors' training code; another folder can be named in DINO_TOWER_PARITY."""
    return Path(os.environ.get("DINO_TOWER_PARITY", Path(__file__).parent / "parity" / "train"))


@pytest.fixture
def new_process() -> Callable[[], None]:
    """Call it before a training: accelerate keeps one precision a process, and tests share theirs."""
    from accelerate.state import AcceleratorState, GradientState

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    return forget


@pytest.fixture
def pretrain(tmp_path: Path, new_process: Callable[[], None]) -> Iterator[Callable[..., Path]]:
    """Call the real main job with tiny settings: pretrain("name", "--steps", "4") -> the run directory."""
    from dino_tower.pretrain.train import main

    def run(name: str, *flags: str, code: int = 0) -> Path:
        new_process()
        words = tiny_command(*flags)
        assert main([*words, "--output", str(tmp_path / name)]) == code
        return tmp_path / name

    yield run


@pytest.fixture(scope="session")
def tiny() -> Callable[..., list[str]]:
    """The words of such a run, for a process of its own: tiny("--steps", "4", "--output", "DIR")."""
    return tiny_command


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of a worker; each `open` starts on a fresh page."""
    running = Browser(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()
