"""What is said of a run before it is trained: which network it makes, what it computes, where it starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dino_tower import load_tower
from dino_tower.pretrain.beforehand import facts_of, open_data, write_untrained
from dino_tower.pretrain.config import read_config
from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.settings import Config
from dino_tower.tokens import tokens

SMALL = """--clip.vocabulary 300 --clip.read 20 --clip.width 32 --clip.depth 1 --clip.heads 2 --clip.embedding 16
    --mae.width 16 --mae.depth 1 --mae.heads 2 --ijepa.width 16 --ijepa.depth 1 --ijepa.heads 2 --ijepa.least 8
    --simclr.hidden 32""".split()
CPU = torch.device("cpu")
LEARNS_FROM_THE_AVERAGE = {
    "dino": "teacher", "ibot": "teacher", "dinov2": "teacher", "ijepa": "teacher", "mae": "student",
    "clip": "student", "simclr": "student", "supervised": "student",
}  # fmt: skip


@pytest.fixture
def config(tiny: Callable[..., list[str]], tmp_path: Path) -> Callable[..., Config]:
    """config("mae", "--batch-size", "4"): the settings of a tiny run of that objective."""

    def read(objective: str, *flags: str) -> Config:
        return read_config(tiny("--objective", objective, "--output", str(tmp_path / "run"), *flags))

    return read


@pytest.mark.parametrize(("objective", "network"), LEARNS_FROM_THE_AVERAGE.items())
def test_the_network_to_use_is_the_teacher_where_the_objective_learns_from_it(
    objective: str, network: str, config: Callable[..., Config]
) -> None:
    settings = config(objective, "--source.max-samples", "64", "--crops.global-size", "48", *SMALL)
    found = facts_of(settings, open_data(settings))
    assert found.network == network and found.gflops > 0


def test_operations_are_those_of_forward_and_backward_passes(config: Callable[..., Config]) -> None:
    """Two blocks more in the middle of DINO's network: the teacher sees two views with them, the student four, and
    going back costs twice as much again. (Of the last block only the class token is asked for.)"""
    shallow, deep = (config("dino", "--model.depth", depth) for depth in ("4", "6"))
    source = open_data(shallow)

    def forward(settings: Config, side: int) -> float:
        backbone = make_networks(settings, CPU, 1)[0].backbone.eval()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            tokens(backbone, torch.randn(1, 3, side, side))
        return counter.get_total_flops() / 1e9

    large, small = (forward(deep, side) - forward(shallow, side) for side in (32, 16))
    more = facts_of(deep, source).gflops - facts_of(shallow, source).gflops
    assert more == pytest.approx(2 * large + 3 * (2 * large + 2 * small), rel=0.02)


def test_the_untrained_tower_is_the_network_that_the_run_starts_from(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    settings = config("dino", "--seed", "3")
    write_untrained(settings, open_data(settings), tmp_path / "start")
    tower = load_tower(str(tmp_path / "start"))
    start = make_networks(settings, CPU, 1)[0].backbone.state_dict()
    assert all(torch.equal(start[name], weight) for name, weight in tower.weights().items())
    assert tower.processor.crop_size["height"] == 32


def test_the_announced_memory_grows_with_the_batch(lives, tiny, tmp_path) -> None:
    """What was there before was read after the first pass had set the highest mark: a batch seemed to cost nothing."""
    found = []
    for batch in ("8", "256"):
        flags = ("--steps", "1", "--model.width", "96", "--batch-size", batch, "--output", str(tmp_path / batch))
        child = lives.start({"words": ["pretrain", *tiny(*flags)]})
        lives.wait(child)
        found.append(float(re.search(r"([0-9.]+) GiB a process", lives.said(child))[1]))
    assert found[1] > found[0] + 0.05
