"""How long a command line waits for an answer that needs no training: help, and a misspelt setting.

A process each, from start to end; the limit is the baseline. Neither may load torch.

    python tests/benchmarks/bench_command.py            # the rows, printed
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from paired import Row, row, show, turns

ROUNDS = 15
LIMIT_MS = 500
COMMANDS = {
    "dino-tower --help": ["--help"],
    "dino-tower pretrain with a misspelt setting": [
        "pretrain",
        "--data",
        "a",
        "--output",
        "b",
        "--optim.base-lrr",
        "1",
    ],
}


def rows() -> list[Row]:
    """One row for each command."""
    runs = {
        name: partial(subprocess.run, [sys.executable, "-m", "dino_tower", *words], capture_output=True, check=False)
        for name, words in COMMANDS.items()
    }
    times = turns(runs, ROUNDS)
    targets = dict.fromkeys(COMMANDS) | {"dino-tower --help": 1.0}
    return [row(name, "the limit", [(t[name], LIMIT_MS) for t in times], targets[name]) for name in COMMANDS]


if __name__ == "__main__":
    show(rows())
