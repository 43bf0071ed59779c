"""What a tower's features cost at the size they are scored at: the columns that stand beside every score."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from statistics import median

import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dino_tower.eval.extraction import AnyTower
from dino_tower.eval.geometry import Frame
from dino_tower.tokens import Tokens
from dino_tower.tower import Tower

# torch's profiler would report its start and stop on stderr
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

BATCH = 4
ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """parameters of the vision part; gflops of one picture (a multiplication and an addition are two operations);
    tokens: patches of one picture; width of a patch's features; images_per_second on the device that was used;
    peak_mib: the most that tensors took at a time beyond the weights, with `batch` pictures."""

    parameters: int
    gflops: float
    tokens: int
    width: int
    height_pixels: int
    width_pixels: int
    images_per_second: float
    peak_mib: float
    batch: int = BATCH


def cost_of(tower: AnyTower, frame: Frame, picture: tuple[int, int] = (640, 480)) -> Cost:
    """Measured on random pixels of the size at which `frame` shows a picture of (width, height) pixels.

    Raises ConfigError where the tower does not take that size.
    """
    size = frame.size(tower.patch, tower.native, picture)
    seen = tower.pixels([Image.new("RGB", picture, (120, 110, 100))], size)
    assert isinstance(seen, Tensor)
    height, width = seen.shape[-2:]
    pixels = torch.rand(BATCH, 3, height, width).to(tower.device, tower.dtype)
    [tokens] = tower.layers(pixels[:1], [tower.depth])
    assert isinstance(tokens, Tokens)
    h, w, features = tokens.patches.shape[1:]
    gflops = _operations(tower, pixels[:1]) / 1e9
    return Cost(
        sum(p.numel() for p in tower.model.parameters()) if isinstance(tower, Tower) else 0,
        gflops, h * w, features, height, width, BATCH / _seconds(tower, pixels), _peak(tower, pixels) / 2**20,
    )  # fmt: skip


def _forward(tower: AnyTower, pixels: Tensor) -> None:
    if isinstance(tower, Tower):
        tower(pixels)
    else:
        tower.layers(pixels, 1)
    if pixels.is_cuda:
        torch.cuda.synchronize(pixels.device)


def _operations(tower: AnyTower, pixels: Tensor) -> int:
    # The fused attention of a CPU is not counted by torch; its plain form is, and does the same products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _forward(tower, pixels)
    return int(counter.get_total_flops())


def _seconds(tower: AnyTower, pixels: Tensor) -> float:
    _forward(tower, pixels)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        _forward(tower, pixels)
        times.append(time.perf_counter() - start)
    return median(times)


def _peak(tower: AnyTower, pixels: Tensor) -> float:
    """Bytes, from the allocator's own events on a CPU: resident memory moves with malloc's habits."""
    if pixels.is_cuda:
        torch.cuda.reset_peak_memory_stats(pixels.device)
        before = torch.cuda.memory_allocated(pixels.device)
        _forward(tower, pixels)
        return torch.cuda.max_memory_allocated(pixels.device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        _forward(tower, pixels)
    live = highest = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda one: one.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest
