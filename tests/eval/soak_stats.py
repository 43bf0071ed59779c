"""The long form of test_stats.py: few and many units, all kinds of scores, as many resamples as a report takes."""

from __future__ import annotations

import numpy as np
import pytest

from dino_tower.eval.stats import compare, interval, of_ratio, of_values

TRIALS = 10_000


@pytest.mark.parametrize("units", [20, 50, 200, 1000])
@pytest.mark.parametrize("kind", ["right or wrong", "skewed", "ratio"])
def test_level_and_coverage(units: int, kind: str) -> None:
    def draw(rng: np.random.Generator):  # type: ignore[no-untyped-def]
        if kind == "right or wrong":
            return of_values(rng.random(units) < 0.6)
        if kind == "skewed":
            return of_values(rng.beta(3, 2, units))
        union = rng.lognormal(0, 0.8, units)
        return of_ratio(union * rng.beta(6, 4, units), union)

    false = held = 0
    for trial in range(TRIALS):
        rng = np.random.default_rng([trial, units])
        a, b = draw(rng), draw(rng)
        false += compare(a, b, resamples=2000, seed=trial // 100).p < 0.05
        found = interval(a, resamples=2000, seed=trial // 100)
        held += found.low <= 0.6 <= found.high
    assert 0.035 <= false / TRIALS <= 0.065
    # Twenty right-or-wrong scores take few values, so that the interval comes in steps: it covers 97.7 %.
    assert 0.93 <= held / TRIALS <= (0.98 if units == 20 else 0.97)
