"""What the tests of adaptation share: small towers on disk, pictures with masks and depth, and a way to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from dino_tower.architectures import build
from dino_tower.cli import main
from dino_tower.images import processor_for
from dino_tower.scenes import make_scene

SIDE = 32
TINY = {
    "--task": "segment", "--data": "scenes", "--source.max-samples": "24", "--steps": "2", "--batch-size": "4",
    "--workers": "0", "--compute.cpu": "true", "--monitor.tracker": "none", "--monitor.log-every": "1",
    "--checkpoint-every": "100",
}  # fmt: skip
PEFT = {"--method": "lora", "--peft.rank": "2"}


def small_tower(arch: str, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(arch, image_size=SIDE, width=32, depth=2, heads=2)


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tower(arch="vits8", seed=0): a directory with a small tower, made once."""
    made: dict[tuple[str, int], Path] = {}

    def make(arch: str = "vits8", seed: int = 0) -> Path:
        if (arch, seed) not in made:
            folder = tmp_path_factory.mktemp("towers") / f"{arch}-{seed}"
            small_tower(arch, seed).save_pretrained(folder)
            processor_for(SIDE, 8).save_pretrained(folder)
            made[arch, seed] = folder
        return made[arch, seed]

    return make


@pytest.fixture
def adapt(tmp_path: Path, new_process: Callable[[], None], tower: Callable[..., Path]) -> Iterator[Callable[..., Path]]:
    """adapt("name", "--steps", "4") -> the directory, by the real command with tiny settings; code: what it returns."""

    def run(name: str, *flags: str, code: int = 0, of: str | Path | None = None) -> Path:
        new_process()
        given = {flag for flag in flags if flag.startswith("--")}
        settings = TINY if given & {"--method"} else TINY | PEFT
        words = [word for key, value in settings.items() if key not in given for word in (key, value)]
        assert main(["adapt", str(of or tower()), *words, *flags, "--output", str(tmp_path / name)]) == code
        return tmp_path / name

    yield run


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/, masks/ and classes.txt of 12 scenes, 40 x 32 pixels; class 0 is the ground, 1 anything on it."""
    root = tmp_path_factory.mktemp("masked")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index in range(12):
        scene = make_scene("easy", index, size=40)
        Image.fromarray(scene.image[:32]).save(root / "images" / f"{index:02d}.png")
        Image.fromarray((scene.instances[:32] > 0).astype(np.uint8)).save(root / "masks" / f"{index:02d}.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    return root


@pytest.fixture(scope="session")
def depths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rgb/ and depth/ of 10 pictures whose brightness falls with depth, 1 to 4 metres in millimetres."""
    root = tmp_path_factory.mktemp("depths")
    for folder in ("rgb", "depth"):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    for index in range(10):
        metres = np.linspace(1, 4, 40)[None] * rng.uniform(0.8, 1, (32, 1))
        grey = (255 / (1 + metres)).astype(np.uint8)
        Image.fromarray(np.stack([grey] * 3, -1)).save(root / "rgb" / f"{index}.png")
        Image.fromarray((metres * 1000).astype(np.uint16)).save(root / "depth" / f"{index}.png")
    return root
