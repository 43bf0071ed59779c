"""A real run of two steps, and runs made by hand for every class of tower: their weights are drawn, biases too."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from dino_tower.architectures import build
from dino_tower.checkpoint import save_tensors
from dino_tower.cli import main
from dino_tower.images import processor_for

SIDE = 32
SMALL = {"width": 64, "depth": 2, "heads": 2}


def drawn(arch: str, seed: int = 0, **sizes: int) -> PreTrainedModel:
    """A small tower none of whose parameters is 0 or 1, so that none can be lost unnoticed; LayerScale stays at 1."""
    small = {} if arch.startswith("resnet") else {**SMALL, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(arch, image_size=SIDE, **small)
        for name, p in model.named_parameters():
            if not name.endswith(("lambda1", "mask_token")):
                p.data += 0.05 * torch.randn_like(p)
    return model.eval()


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """make_run(arch): a run directory as pretrain leaves it, of drawn weights; each architecture once."""
    made: dict[str, Path] = {}

    def make(arch: str) -> Path:
        if arch not in made:
            run = tmp_path_factory.mktemp(arch) / "run"
            checkpoint = run / "checkpoints" / "step-1"
            for seed, who in enumerate(("student", "teacher")):
                drawn(arch, seed).save_pretrained(checkpoint / who)
                processor_for(SIDE, 1 if arch.startswith("resnet") else 8).save_pretrained(checkpoint / who)
            heads = {f"{who}.mlp.0.weight": torch.randn(4, 4) for who in ("student", "teacher")}
            save_tensors(checkpoint / "heads.safetensors", heads)
            (checkpoint / "state.json").write_text("{}")
            settings = {"data": ["photos"], "preset": "demo", "arch": arch, "seed": 0, "crops": {"global_size": SIDE}}
            (run / "config.yaml").write_text(yaml.safe_dump(settings))
            (run / "log.jsonl").write_text(json.dumps({"kind": "step", "step": 1, "loss": 4.0}) + "\n")
            made[arch] = run
        return made[arch]

    return make


@pytest.fixture(scope="session")
def draw() -> Callable[..., PreTrainedModel]:
    """draw(arch, seed, width=..., ...): a small tower with drawn weights."""
    return drawn


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., list[str]]) -> Path:
    """A run of the real main job, with a monitor that looked twice."""
    from accelerate.state import AcceleratorState, GradientState

    from dino_tower.pretrain.train import main

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    folder = tmp_path_factory.mktemp("trained")
    words = tiny("--arch", "vits8", "--steps", "2", "--monitor.minutes", "60", "--monitor.knn-images", "30")
    before = Path.cwd()
    os.chdir(folder)  # the command in the log then names no folder of this machine
    try:
        assert main([*words, "--output", "birds"]) == 0
    finally:
        os.chdir(before)
    return folder / "birds"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ""
        for p in folder.rglob("*")
    }


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """contents(folder): the SHA-256 of every file below it."""
    return digests


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str], str], None]:
    """refused(words, says): one line with `says` in it, exit code 2, and a folder in which nothing has changed."""

    def check(words: list[str], says: str) -> None:
        before = digests(place)
        capsys.readouterr()
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("dino-tower: ") and says in line and len(line) < 420
        assert digests(place) == before
        print(f"| `{' '.join(words)}` | {line} |")

    return check
