"""`python -m dino_tower` is `dino-tower`."""

from __future__ import annotations

import sys

from dino_tower.cli import main

if __name__ == "__main__":
    sys.exit(main())
