"""What reading features through `load_tower` costs on top of the bare model: less than 5 % is promised.

An untrained ViT-S/16 at 224 px, batch 4, one thread. The baseline is the model of transformers called by hand on the
same pixels: its last hidden state, all of its hidden states, and the same behind its own image processor. The two take
turns, and the ratio is that of the paired times.

    python tests/benchmarks/bench_extraction.py            # the rows, printed
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from paired import Row, row, show, turns
from PIL import Image

from dino_tower import load_tower
from dino_tower.eval.datasets import Item
from dino_tower.eval.extraction import Feature, extract
from dino_tower.eval.geometry import Frame
from dino_tower.tower import Tower

ARCHITECTURE, BATCH, ROUNDS = "random:vits16", 4, 31
TARGET = 0.95


def rows() -> list[Row]:
    """One row for each way of reading features."""
    torch.set_num_threads(1)
    tower = load_tower(ARCHITECTURE)
    model, processor = tower.model, tower.processor
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)) for _ in range(BATCH)]
    pixels = tower.pixels(images)

    @torch.no_grad()
    def bare(**options: bool) -> object:
        return model(pixels, **options)

    @torch.no_grad()
    def by_hand() -> object:
        return model(processor(images, return_tensors="pt").pixel_values)

    # name -> ours, and what it is compared with
    ways = {
        "tokens": (lambda: tower(pixels), bare, "the model's forward"),
        "the last 4 layers, normed": (lambda: tower.layers(pixels, 4), bare, "the model's forward"),
        "every layer, not normed": (
            lambda: tower.layers(pixels, range(13), norm=False),
            lambda: bare(output_hidden_states=True),
            "output_hidden_states=True",
        ),
        "last keys": (lambda: tower.keys(pixels), bare, "the model's forward"),
        "tokens of PIL pictures": (lambda: tower(images), by_hand, "image processor, then the model"),
    }
    found = []
    for name, (ours, theirs, baseline) in ways.items():
        # CPU time of one thread: what other programs take from the machine does not count.
        times = turns({"ours": ours, "theirs": theirs}, ROUNDS, time.process_time)
        pairs = [(one["ours"], one["theirs"]) for one in times]
        found.append(row(f"features, {name}", baseline, pairs, TARGET))
    return [*found, into_the_cache(tower)]


def into_the_cache(tower: Tower) -> Row:
    """Patches of 48 files read, seen and written to memory-mapped arrays, against reading and seeing them by hand."""
    with tempfile.TemporaryDirectory() as folder:
        root, rng = Path(folder), np.random.default_rng(1)
        files = [root / "photos" / kind / f"{i}.jpg" for kind in "ab" for i in range(24)]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(file)
        items = [Item(file.stem, file) for file in files]
        frame, feature = Frame("square", "pixels", pixels=224), Feature("rows", tower.depth)
        target = root / "features"
        target.mkdir()

        @torch.no_grad()
        def by_hand() -> None:
            for start in range(0, len(files), 20):
                part = [Image.open(file).convert("RGB") for file in files[start : start + 20]]
                resized = [one.resize((224, 224), Image.Resampling.BICUBIC) for one in part]
                tower.model(tower.processor(resized, do_resize=False, return_tensors="pt").pixel_values)

        times = turns(
            {"ours": lambda: extract(tower, items, frame, {feature: target}), "theirs": by_hand}, 5, time.process_time
        )
    pairs = [(one["ours"], one["theirs"]) for one in times]
    return row("patches of 48 photos into the cache", "read and seen by hand", pairs, TARGET)


if __name__ == "__main__":
    show(rows())
