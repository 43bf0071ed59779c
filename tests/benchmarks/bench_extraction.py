"""What reading features through `load_tower` costs on top of the bare model: less than 5 % is promised.

An untrained ViT-S/16 at 224 px, batch 4, one thread. The baseline is the model of transformers called by hand on the
same pixels: its last hidden state, all of its hidden states, and the same behind its own image processor. The two take
turns, and the ratio is that of the paired times.

    python tests/benchmarks/bench_extraction.py            # the rows, printed
"""

from __future__ import annotations

import os
import time

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from paired import Row, row, show, turns
from PIL import Image

from dino_tower import load_tower

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
    return found


if __name__ == "__main__":
    show(rows())
