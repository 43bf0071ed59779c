"""What the masked-patch term adds to a step: ViT-S/16, 2 x 224 + 8 x 96, K 8,192, B 8, fp32, on all cores.

The baseline is the same step of our own without masks and without the term (DINO). A ratio of 0.77 is 1.3 times its
time. The first row has iBOT's shared head and a centre over all patches, the second DINOv2's stratified masks, a head
of the patches' own and Sinkhorn-Knopp for both.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from bench_step import BATCH, crops, step_of
from paired import Row, row, show, turns

from dino_tower.pretrain.loading.draws import Place
from dino_tower.pretrain.objectives.objective import beside
from dino_tower.pretrain.objectives.settings import IbotConfig
from dino_tower.pretrain.objectives.term import Inputs
from dino_tower.pretrain.settings import Config, HeadConfig, LossConfig

PROTOTYPES, ROUNDS = 8192, 5
DINO = Config(arch="vits16", head=HeadConfig(prototypes=PROTOTYPES))
IBOT = replace(DINO, objective="ibot")
SEPARATE = replace(
    IBOT,
    ibot=IbotConfig(head="separate", masks="stratified"),
    loss=LossConfig(centring="sinkhorn"),
)


def inputs(config: Config) -> Inputs:
    """The views of bench_step.py, with the masks that the settings draw."""
    (draw,) = beside(config, patch=16).draws
    masks = np.stack([draw(Place(0, 0, i, 0, i, BATCH))["masks"] for i in range(BATCH)])
    return Inputs(crops(), torch.zeros(BATCH, dtype=torch.int64), drawn={"masks": torch.from_numpy(masks)})


def rows() -> list[Row]:
    """Both kinds of masked step against the step without."""
    plain = Inputs(crops(), torch.zeros(BATCH, dtype=torch.int64))
    steps = {
        "dino": step_of(DINO, plain),
        "ibot": step_of(IBOT, inputs(IBOT)),
        "own": step_of(SEPARATE, inputs(SEPARATE)),
    }
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = turns(steps, ROUNDS, clock)
    names = {"ibot": "step with masked patches, shared head, centre", "own": "the same, own head, Sinkhorn-Knopp"}
    pairs = {key: [(t[key], t["dino"]) for t in times] for key in names}
    return [row(name, f"step without, K {PROTOTYPES:,}", pairs[key], 0.77) for key, name in names.items()]


if __name__ == "__main__":
    show(rows())
