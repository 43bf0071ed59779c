"""Intervals and comparisons: every score is rebuilt from what each unit (image, query, object) contributed to it.

Legend: U units, C classes (1 where a score has none), R resamples.

A mean is a ratio of sums whose denominators are 1, so one form serves them all:

    score = mean over classes of (sum over units of numerator) / (sum over units of denominator)

mIoU is intersections over unions; accuracy is hits over ones; PCK per point is hits over points. The bootstrap draws
units and forms the ratio again: a mean of per-image IoUs is another number than the IoU of a data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.knn import MIN_UNITS

Array = np.ndarray | Tensor | Sequence[float]
DRAWS_AT_A_TIME = 2**21  # counts held at a time (16 MiB): memory does not grow with the number of units


class Parts(NamedTuple):
    """What each unit adds to a score: numerator and denominator [U, C]."""

    numerator: np.ndarray
    denominator: np.ndarray


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval; low and high are NaN ("n/a") below 20 units."""

    value: float
    low: float
    high: float
    units: int


@dataclass(frozen=True)
class Comparison:
    """a - b over the same units, with interval and two-sided p-value; the three are NaN below 20 units."""

    difference: float
    low: float
    high: float
    p: float
    units: int


def of_values(values: Array) -> Parts:
    """The parts of a plain mean: one value a unit [U]; NaN leaves a unit out (a picture without objects)."""
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    missing = np.isnan(column)
    return Parts(np.where(missing, 0.0, column), (~missing).astype(np.float64))


def of_ratio(numerator: Array, denominator: Array) -> Parts:
    """The parts of a ratio of sums, [U] or, for a mean over classes, [U, C] each."""
    over, under = (np.asarray(x, dtype=np.float64) for x in (numerator, denominator))
    if over.shape != under.shape or over.ndim not in (1, 2):
        raise ConfigError(f"score: parts of shape {over.shape} and {under.shape}; need [U] or [U, C], twice the same")
    return Parts(over.reshape(len(over), -1), under.reshape(len(under), -1))


def score(parts: Parts) -> float:
    """The score itself; a class whose denominators sum to 0 is left out, NaN if none is left."""
    return float(_ratio(parts.numerator.sum(0), parts.denominator.sum(0)))


def interval(parts: Parts, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Score:
    """The score with its bootstrap interval over units (`_quantiles` says which)."""
    units = counted_units(parts)
    if units < MIN_UNITS:
        return Score(score(parts), math.nan, math.nan, units)
    low, high = _quantiles(resampled(parts, resamples, seed), effective_units(parts), level)
    return Score(score(parts), low, high, units)


def compare(a: Parts, b: Parts, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Paired: a and b come from the same units in the same order, and each resample draws the same units for both.

    Raises ConfigError where the numbers of units differ.
    """
    if len(a.numerator) != len(b.numerator):
        raise ConfigError(
            f"comparison: {len(a.numerator)} units against {len(b.numerator)}; both need the same units in one order"
        )
    difference, units = score(a) - score(b), min(counted_units(a), counted_units(b))
    if units < MIN_UNITS:
        return Comparison(difference, math.nan, math.nan, math.nan, units)
    drawn = resampled(a, resamples, seed) - resampled(b, resamples, seed)
    effective = min(effective_units(a), effective_units(b))
    low, high = _quantiles(drawn, effective, level)
    return Comparison(difference, low, high, _p_value(drawn, effective), units)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where the result is below 0.05 and one error in 20 tables is what you risk.

    NaN (too few units for a test) stays NaN and is not counted among the tests.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, p * (len(known) - rank)))
        adjusted[i] = running
    return adjusted


def compare_with(
    reference: str, towers: Mapping[str, Parts], resamples: int = 10_000, seed: int = 0
) -> dict[str, tuple[Comparison, float]]:
    """Every tower minus the reference: {name: (comparison, p adjusted by Holm over all of them)}."""
    others = {name: compare(parts, towers[reference], resamples=resamples, seed=seed)
              for name, parts in towers.items() if name != reference}  # fmt: skip
    adjusted = holm([one.p for one in others.values()])
    return {name: (one, p) for (name, one), p in zip(others.items(), adjusted, strict=True)}


def power(difference: float, deviation: float, units: int, level: float = 0.95) -> float:
    """How often `compare` will find a true difference: of two-sided tests at 1 - level, from the t distribution.

    difference: the true one; deviation: the standard deviation over units of what is compared (a - b of a unit).
    """
    if units < 2 or deviation <= 0:
        raise ConfigError(f"power: {units} units with deviation {deviation}; need two units and a deviation above 0")
    critical = stdtrit(units - 1, (1 + level) / 2)
    shift = abs(difference) / deviation * math.sqrt(units)
    # The noncentral t, by its normal approximation (Johnson and Welch): within 0.002 from 20 units on.
    spread = math.sqrt(1 + critical**2 / (2 * (units - 1)))
    bend = critical * (1 - 1 / (4 * (units - 1)))
    return float(1 - ndtr((bend - shift) / spread) + ndtr((-bend - shift) / spread))


def counted_units(parts: Parts) -> int:
    """Units that add anything to the score."""
    return int((parts.denominator != 0).any(1).sum())


def effective_units(parts: Parts) -> float:
    """Units counted by what they weigh, (sum w)^2 / sum w^2 (Kish): U for a mean, fewer where large images carry it.

    w of a unit: its share of the denominators. Without this the interval of a ratio whose largest images are ten times
    the median covers 93 % and not 95 %.
    """
    total = parts.denominator.sum(0)
    weight = (parts.denominator[:, total != 0] / total[total != 0]).sum(1)
    return max(2.0, float(weight.sum() ** 2 / np.square(weight).sum()))


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Mean over the classes (last axis) that have a denominator."""
    present = under != 0
    ratio = np.where(present, over / np.where(present, under, 1), 0.0)
    with np.errstate(invalid="ignore"):
        return ratio.sum(-1) / present.sum(-1)


def resampled(parts: Parts, resamples: int, seed: int) -> np.ndarray:
    """The score of each resample [R]; the same seed draws the same units, which is what pairs two towers."""
    units = len(parts.numerator)
    step = max(1, DRAWS_AT_A_TIME // units)
    scores = []
    for start in range(0, resamples, step):
        counts = _counts(units, start, min(step, resamples - start), seed)
        scores.append(_ratio(counts @ parts.numerator, counts @ parts.denominator))
    return np.concatenate(scores)


@lru_cache(maxsize=4)
def _counts(units: int, start: int, rows: int, seed: int) -> np.ndarray:
    """How often each unit is drawn [rows, U]. Kept: many scores of one table share their number of units."""
    drawn = np.random.default_rng([seed, start]).integers(0, units, (rows, units))
    drawn += np.arange(rows)[:, None] * units
    return np.bincount(drawn.reshape(-1), minlength=rows * units).reshape(rows, units).astype(np.float64)


def _quantiles(drawn: np.ndarray, units: float, level: float) -> tuple[float, float]:
    """Percentile interval, widened for few units as a t interval is (Hesterberg 2015, "expanded percentile").

    The plain percentile interval divides by U where a variance needs U - 1 and has the normal's tails: at 20 units it
    covers 92 %, not 95 %.
    """
    tail = ndtr(math.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 - level) / 2))
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _p_value(drawn: np.ndarray, units: float) -> float:
    """The level at which the interval would just touch 0: below 0.05 exactly where the 95 % interval excludes 0."""
    drawn = drawn[~np.isnan(drawn)]
    # Half of the ties at 0 count on each side; one resample more on both sides, so that p is never 0.
    ties = (drawn == 0).sum() / 2
    share = (min((drawn < 0).sum(), (drawn > 0).sum()) + ties + 1) / (len(drawn) + 2)
    if share >= 0.5:
        return 1.0
    return float(2 * stdtr(units - 1, ndtri(share) * math.sqrt((units - 1) / units)))
