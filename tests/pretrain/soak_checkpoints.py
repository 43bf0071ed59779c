"""200 writers of checkpoints killed at random instants: 2 minutes on one free core. The short form, with ten, is in
test_checkpoints.py.
"""

from __future__ import annotations

import runpy
from pathlib import Path


def test_two_hundred_kills_while_writing(tmp_path: Path) -> None:
    short = runpy.run_path(str(Path(__file__).with_name("test_checkpoints.py")))
    met = short["kill_while_writing"](tmp_path, 200)
    print(met)
    assert sum(met.values()) == 200 and met["half written"] >= 100 and met["half deleted"] >= 1
