"""Fixtures that every test may use, and the settings that keep results exact."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parity_train() -> Path:
    """Inputs and outputs of the authors' training code; another folder can be named in DINO_TOWER_PARITY."""
    return Path(os.environ.get("DINO_TOWER_PARITY", Path(__file__).parent / "parity" / "train"))
