"""A run's tower as a plain transformers directory: config, safetensors, image processor, model card.

There is no conversion: the tower was trained in the class it is shipped in. What is written is loaded again and
compared before it gets its name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dino_tower.checkpoint import write_atomically
from dino_tower.config import read_yaml
from dino_tower.errors import ConfigError
from dino_tower.model_card import model_card
from dino_tower.tokens import Tokens
from dino_tower.tower import Tower, load_tower


def export_tower(run: str | Path, out: str | Path, weights: str = "student", note: str = "") -> float:
    """Write the newest student or teacher of a run to the directory `out`, with its processor and a model card.

    note: Markdown put into the card, e.g. measured results. Returns the largest difference between the tokens of the
    run's tower and of what was written, on pictures at three sizes: always 0, else nothing is written.
    Raises ConfigError for a run without a checkpoint and for an `out` that exists.
    """
    run, out = Path(run), Path(out)
    if out.exists():
        raise ConfigError(f"{out}: exists already; name a new directory")
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: not a run directory (it has no config.yaml)")
    tower = load_tower(f"{run}@{weights}")
    settings = read_yaml(run / "config.yaml")
    differences: list[float] = []

    def fill(folder: Path) -> None:
        tower.model.save_pretrained(folder)
        tower.processor.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(tower, settings, weights, note))
        differences.append(largest_difference(tower, load_tower(folder)))
        if differences[0] != 0:
            raise ConfigError(f"{out}: what was written differs from the run's tower by {differences[0]:.1e}; not kept")

    write_atomically(out, fill)
    return differences[0]


def largest_difference(a: Tower, b: Tower) -> float:
    """Largest absolute difference between the tokens of two towers, on fixed noise pictures at three sizes."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    gaps = []
    for size in (None, (8 * a.patch, 6 * a.patch), (11 * a.patch, 11 * a.patch)):
        for x, y in zip(_all(a([picture], size)), _all(b([picture], size)), strict=True):
            gaps.append(float((x - y).abs().max()))
    return max(gaps)


def _all(out: Tokens | list[Tokens]) -> list[torch.Tensor]:
    assert isinstance(out, Tokens)  # one picture
    return [t for t in out if t is not None]
