"""What changes from step to step: learning rate, weight decay, teacher momentum and teacher temperature.

Each schedule is a plain float64 array with one value an optimiser step (main_dino.py, utils.py::cosine_scheduler).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Schedule = NDArray[np.float64]


def cosine(base: float, final: float, steps: int, warmup: int = 0) -> Schedule:
    """Linear from 0 to base over `warmup` steps, then half a cosine to final.

    The end point of the warm-up repeats as the first value of the cosine, as in the reference.
    Raises ValueError if the warm-up is longer than the run.
    """
    if not 0 <= warmup <= steps:
        raise ValueError(f"a warm-up of {warmup} steps does not fit a run of {steps}")
    rest = steps - warmup
    i = np.arange(rest)
    decay = final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / max(rest, 1)))
    return np.concatenate([np.linspace(0, base, warmup), decay])


def constant(base: float, steps: int, warmup: int = 0) -> Schedule:
    """Linear from 0 to base over `warmup` steps, then base (DINOv3). Raises ValueError as `cosine` does."""
    return cosine(base, base, steps, warmup)


def stepped_warmup(start: float, final: float, warmup: int, epochs: int) -> Schedule:
    """One value an epoch: linear from start to final over `warmup` epochs, then constant (teacher temperature)."""
    warmup = min(warmup, epochs)
    return np.concatenate([np.linspace(start, final, warmup), np.full(epochs - warmup, final)])


def per_step(values: Schedule, steps: int) -> Schedule:
    """Spread one value an epoch [E] over a run of `steps` steps; an epoch is steps / E of them, not always whole."""
    epoch = np.arange(steps) * len(values) // steps
    return values[epoch]
