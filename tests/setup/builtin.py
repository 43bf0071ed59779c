"""Put a trained run into the package as `builtin:scenes`: measure it, write its numbers into its card, export it.

`make builtin` trains the run (preset builtin_scenes, about an hour on two cores) and calls this with its directory.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from dino_tower import demo, export_tower, load_tower
from dino_tower.finding import BUILTIN

SCENES = 2_000
LIMIT = 4 * 2**20  # bytes of weights that a wheel may carry for convenience
NOTE = """
## What it can do

Measured beside the same network untrained and beside raw pixels, on pictures that it was not trained on:

```
{table}
```

"""


def main(run: Path) -> None:
    """Write dino_tower/builtin/scenes from the teacher of `run`, in place of what was there."""
    trained, untrained = load_tower(f"{run}@teacher"), load_tower(f"random:{run}@teacher")
    table, _ = demo.report(demo.compare(trained, untrained, SCENES))
    print(table)
    out = BUILTIN / "scenes"
    with tempfile.TemporaryDirectory() as aside:
        new = Path(aside) / out.name  # the card is named after its directory
        export_tower(run, new, weights="teacher", note=NOTE.format(table=table), license="apache-2.0")
        weights = (new / "model.safetensors").stat().st_size
        if weights > LIMIT:
            raise SystemExit(f"{weights:,} bytes of weights: more than {LIMIT:,}; nothing was replaced")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(new, out)
    print(f"{out}: {weights:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
