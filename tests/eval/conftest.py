"""What the authors' own evaluation code printed, and how near ours has to come."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_tower.cli import main

HERE = Path(__file__).parents[1] / "parity" / "eval"
Arrays = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def parity_eval() -> Path:
    """The folder of published numbers; another one can be named in DINO_TOWER_PARITY_EVAL. An empty one fails."""
    return Path(os.environ.get("DINO_TOWER_PARITY_EVAL", HERE))


@pytest.fixture(scope="session")
def published(parity_eval: Path) -> Callable[[str], Arrays]:
    """published("knn") -> {key: tensor}, strings as lists."""

    def load(name: str) -> Arrays:
        with np.load(parity_eval / f"{name}.npz") as file:
            return {
                key: torch.from_numpy(np.array(file[key])) if file[key].dtype.kind in "biuf" else file[key].tolist()
                for key in file.files
            }

    return load


@pytest.fixture(scope="session")
def stated(parity_eval: Path) -> Callable[[str, str], int]:
    """stated("object_discovery", r"H=(\\d+)") -> 187: a number that stands only in the note of INDEX.json."""
    index = json.loads((parity_eval / "INDEX.json").read_text(encoding="utf-8"))

    def number(name: str, pattern: str) -> int:
        found = re.search(pattern, index[name]["note"])
        assert found, f"INDEX.json says no {pattern} for {name}"
        return int(found[1])

    return number


@pytest.fixture(scope="session")
def same() -> Callable[..., None]:
    """same(ours, theirs): integers and masks exactly, floats to 1e-5 of the largest entry, NaN where NaN is."""

    def check(ours: object, theirs: torch.Tensor, scale: float | None = None) -> None:
        mine = torch.as_tensor(np.asarray(ours))
        assert mine.shape == theirs.shape, f"{tuple(mine.shape)} and {tuple(theirs.shape)}"
        if not theirs.is_floating_point():
            assert torch.equal(mine.to(theirs.dtype), theirs)
            return
        mine, theirs = mine.double(), theirs.double()
        assert torch.equal(mine.isnan(), theirs.isnan())
        largest = float(theirs.nan_to_num(0).abs().max()) if scale is None else scale
        assert float((mine - theirs).nan_to_num(0).abs().max()) <= 1e-5 * largest

    return check


SMALL = ("--tokens", "6", "--pixels", "64", "--limit", "24", "--seeds", "2", "--suite", "knn,in-context")


@pytest.fixture(scope="session")
def bench_command() -> Callable[..., list[str]]:
    """bench_command(FOLDER, *FLAGS, towers=, data=): the words of a small benchmark with output and cache there."""

    def words(folder: Path, *flags: str, towers: tuple[str, ...] = ("builtin:scenes",)) -> list[str]:
        places = ["--data", "scenes", "--output", str(folder / "out"), "--cache", str(folder / "cache")]
        return ["eval", *towers, *places, *SMALL, *flags]

    return words


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, bench_command: Callable[..., list[str]]) -> Path:
    """The folder of one small benchmark, run once: out/ and cache/."""
    folder = tmp_path_factory.mktemp("benchmark")
    assert main(bench_command(folder)) == 0
    return folder
