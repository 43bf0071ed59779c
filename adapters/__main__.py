"""`python -m dino_tower.adapters` and `torchrun -m dino_tower.adapters` are `dino-tower adapt`."""

from __future__ import annotations

import sys

from dino_tower.cli import main

if __name__ == "__main__":
    sys.exit(main(["adapt", *sys.argv[1:]]))
