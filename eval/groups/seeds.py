"""Intervals over seeds and units: would another training, judged on other pictures, say the same?

G recipes, each trained with the same S seeds, so that seed s of one stands beside seed s of another (the same start,
the same order of data); U units (pictures, objects), the same for all; R resamples of the units.

    score of a recipe = mean over its seeds;  difference = mean over the pairs of seeds

Both are uncertain in two ways that add up: other units (the bootstrap of `stats`, all seeds drawn together), and other
seeds. Two or three seeds say little about how much seeds differ, so that the row's recipes are asked together, seeds
being blocks of a two-way layout: S^2 = sum of squared residuals / ((G - 1) (S - 1)), never less than the pair's own
share. The interval is a t interval whose degrees of freedom are Satterthwaite's. In simulations it covers 94 to 98 %
(tests/eval/test_groups.py); with one seed it speaks of the units only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from dino_tower.errors import ConfigError
from dino_tower.eval.stats import Comparison, Parts, Score, counted_units, effective_units, resampled, score
from dino_tower.knn import MIN_UNITS

RESAMPLES = 10_000
LEVEL = 0.95


class Judged(NamedTuple):
    """One recipe on one task: the score of each seed [S], of each resample of the units [S, R], and how many units
    there are, as they are and counted by what they weigh."""

    values: np.ndarray
    draws: np.ndarray
    units: int
    effective: float


class Noise(NamedTuple):
    """How much one training differs from the next: variances, with their degrees of freedom (0: not known)."""

    of_one: float = 0.0
    of_one_df: int = 0
    of_pair: float = 0.0
    of_pair_df: int = 0


def judged(seeds: Sequence[Parts], resamples: int = RESAMPLES) -> Judged:
    """What each seed's units added to the score, resampled: the same units for all seeds and all recipes."""
    units = {len(parts.numerator) for parts in seeds}
    if len(units) != 1:
        raise ConfigError(f"seeds were judged on unlike numbers of units: {', '.join(map(str, sorted(units)))}")
    counted = min(counted_units(parts) for parts in seeds)
    # below that no interval is given: the draws would be for nothing
    draws = [resampled(parts, resamples, 0) if counted >= MIN_UNITS else np.empty(0) for parts in seeds]
    effective = min(effective_units(parts) for parts in seeds) if counted else 0.0
    return Judged(np.array([score(parts) for parts in seeds]), np.stack(draws), counted, effective)


def noise(recipes: Sequence[Judged]) -> Noise:
    """From recipes with the same seeds in the same order; those with another number of seeds than the first are left
    out."""
    same = [one.values for one in recipes if len(one.values) == len(recipes[0].values)] if recipes else []
    table = np.array([values for values in same if np.isfinite(values).all()])
    if len(table) == 0 or table.shape[1] < 2:
        return Noise()
    groups, seeds = table.shape
    of_one_df, of_pair_df = groups * (seeds - 1), (groups - 1) * (seeds - 1)
    own = ((table - table.mean(1, keepdims=True)) ** 2).sum() / of_one_df
    residual = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return Noise(own, of_one_df, 2 * (residual**2).sum() / of_pair_df if of_pair_df else 0.0, of_pair_df)


def over_seeds(one: Judged, shared: Noise) -> Score:
    """The mean over seeds with its interval; NaN ends below 20 units."""
    mean = float(one.values.mean())
    error, df = _error(one.values, one.draws, one, shared.of_one, shared.of_one_df)
    reach = float(stdtrit(df, (1 + LEVEL) / 2)) * error if error else error
    return Score(mean, mean - reach, mean + reach, one.units)


def difference(a: Judged, b: Judged, shared: Noise) -> Comparison:
    """a - b over their pairs of seeds. Raises ConfigError where there are not as many of both."""
    if len(a.values) != len(b.values):
        raise ConfigError(f"seeds in pairs: {len(a.values)} against {len(b.values)}")
    values, fewer = a.values - b.values, min(a, b, key=lambda one: one.effective)
    mean, units = float(values.mean()), min(a.units, b.units)
    if units < MIN_UNITS:
        return Comparison(mean, math.nan, math.nan, math.nan, units)
    error, df = _error(values, a.draws - b.draws, fewer, shared.of_pair, shared.of_pair_df)
    if error == 0:
        return Comparison(mean, mean, mean, 0.0 if mean else 1.0, units)
    reach = float(stdtrit(df, (1 + LEVEL) / 2)) * error
    return Comparison(mean, mean - reach, mean + reach, float(2 * stdtr(df, -abs(mean) / error)), units)


def _error(values: np.ndarray, draws: np.ndarray, one: Judged, shared: float, shared_df: int) -> tuple[float, float]:
    """(standard error of the mean over seeds, its degrees of freedom); NaN below 20 units."""
    if one.units < MIN_UNITS:
        return math.nan, 1.0
    # the bootstrap's variance divides by U where that of a mean needs U - 1
    of_units = float(np.nanvar(np.nanmean(draws, 0))) * one.effective / (one.effective - 1)
    if len(values) < 2:
        return math.sqrt(of_units), one.effective - 1
    own = float(values.var(ddof=1))
    of_seeds = max(own, shared) / len(values)
    df = shared_df or len(values) - 1
    total = of_units + of_seeds
    if total == 0:
        return 0.0, float(df)
    return math.sqrt(total), total**2 / (of_units**2 / (one.effective - 1) + of_seeds**2 / df)
