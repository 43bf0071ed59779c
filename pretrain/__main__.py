"""`python -m dino_tower.pretrain` and `accelerate launch -m dino_tower.pretrain` are `dino-tower pretrain`."""

from __future__ import annotations

import sys

from dino_tower.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
