"""Do the intervals, p-values and power mean what they say? Simulated score distributions whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dino_tower.errors import ConfigError
from dino_tower.eval.stats import Parts, compare, compare_with, holm, interval, of_ratio, of_values, power, score

TRIALS = 2000
RESAMPLES = 1000
Draw = Callable[[np.random.Generator], Parts]


def iou_of_images(rng: np.random.Generator) -> Parts:
    """Images of very different size, one class; the true ratio is 0.6."""
    union = rng.lognormal(0, 0.8, 60)
    return of_ratio(union * rng.beta(6, 4, 60), union)


def mean_iou_of_images(rng: np.random.Generator) -> Parts:
    """Three classes with IoU 0.6 each, in images of different size; the third class is in half of them."""
    union = rng.lognormal(0, 0.6, (80, 3)) * np.array([1, 1, 0.5])
    union[:, 2] *= rng.random(80) < 0.5
    return of_ratio(union * rng.beta(6, 4, (80, 3)), union)


def scores_of_images(rng: np.random.Generator) -> Parts:
    """A score an image, skewed to one side; the true mean is 0.6."""
    return of_values(rng.beta(3, 2, 60))


def trials(rounds: int = TRIALS) -> list[tuple[int, np.random.Generator]]:
    """Seeds of the bootstrap and generators of the data; 50 trials share their draws, which are then made once."""
    return [(i // 50, np.random.default_rng([i, 1])) for i in range(rounds)]


@pytest.mark.parametrize("draw", [scores_of_images, iou_of_images])
def test_equal_towers_differ_in_one_comparison_of_twenty(draw: Draw) -> None:
    found = [compare(draw(rng), draw(rng), resamples=RESAMPLES, seed=seed).p for seed, rng in trials()]
    assert 0.035 <= np.mean(np.array(found) < 0.05) <= 0.065


@pytest.mark.parametrize("draw", [scores_of_images, iou_of_images, mean_iou_of_images])
def test_intervals_hold_the_truth_as_often_as_they_say(draw: Draw) -> None:
    held = 0
    for seed, rng in trials():
        found = interval(draw(rng), resamples=RESAMPLES, seed=seed)
        held += found.low <= 0.6 <= found.high
    assert 0.93 <= held / TRIALS <= 0.97


def test_a_planted_difference_is_found_with_the_power_computed_before() -> None:
    """2 points between two towers, whose scores of an image go up and down together."""
    planted, deviation, units = 0.02, 0.12, 200
    expected = power(planted, deviation, units)
    assert 0.55 < expected < 0.75
    found = 0
    for seed, rng in trials(1000):
        shared = rng.normal(0.6, 0.2, units)
        a = shared + planted + rng.normal(0, deviation, units)
        found += compare(of_values(a), of_values(shared), resamples=RESAMPLES, seed=seed).p < 0.05
    assert found / 1000 == pytest.approx(expected, abs=0.045)  # three standard errors of 1,000 trials


def test_interval_and_p_value_agree() -> None:
    for seed, rng in trials(60):
        a, b = rng.normal(0.02, 0.1, 50), rng.normal(0, 0.1, 50)
        found = compare(of_values(a), of_values(b), seed=seed)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        back = compare(of_values(b), of_values(a), seed=seed)
        assert (back.difference, back.low, back.high, back.p) == pytest.approx(
            (-found.difference, -found.high, -found.low, found.p)
        )


def test_a_data_set_iou_is_not_the_mean_of_its_images() -> None:
    small_and_wrong = of_ratio([0, 90], [10, 100])
    assert score(small_and_wrong) == pytest.approx(90 / 110)
    assert score(of_values([0 / 10, 90 / 100])) == pytest.approx(0.45)


def test_classes_without_pixels_leave_the_mean() -> None:
    assert score(of_ratio([[1, 0, 0], [1, 0, 0]], [[2, 4, 0], [2, 0, 0]])) == pytest.approx(0.25)
    assert math.isnan(score(of_ratio([[0.0]], [[0.0]])))
    assert score(of_values([0.5, math.nan, 1.0])) == pytest.approx(0.75)


def test_below_twenty_units_there_is_no_interval() -> None:
    nineteen = of_values(np.r_[np.linspace(0, 1, 19), np.full(30, np.nan)])
    found, against = interval(nineteen), compare(nineteen, nineteen)
    assert found.units == against.units == 19
    assert found.value == pytest.approx(0.5)
    assert all(math.isnan(x) for x in (found.low, found.high, against.low, against.high, against.p))
    assert not math.isnan(interval(of_values(np.linspace(0, 1, 20))).low)


def test_pairing_needs_the_same_units() -> None:
    with pytest.raises(ConfigError, match="20 units against 21"):
        compare(of_values(np.zeros(20)), of_values(np.zeros(21)))
    with pytest.raises(ConfigError, match=r"need \[U\] or \[U, C\]"):
        of_ratio(np.zeros((3, 2)), np.zeros(3))


def test_same_scores_are_no_difference_and_a_large_one_is_certain() -> None:
    rng = np.random.default_rng(0)
    a = of_values(rng.random(40))
    assert compare(a, a).p == 1.0
    found = compare(of_values(rng.random(40) + 2), a)
    assert 0 < found.p < 0.001


def test_pairing_finds_what_two_intervals_hide() -> None:
    """Both towers find the same images hard: their intervals overlap, the paired difference is clear."""
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    a, b = of_values(hard + 0.05 + rng.normal(0, 0.02, 60)), of_values(hard)
    assert interval(a).low < interval(b).high
    assert compare(a, b).p < 0.001


def test_resampling_in_blocks_is_the_plain_bootstrap() -> None:
    """Many units are drawn block by block; the interval is that of the textbook."""
    values = np.random.default_rng(5).random(3000)
    drawn = np.random.default_rng(6).integers(0, 3000, (4000, 3000))
    expected = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    found = interval(of_values(values), resamples=4000)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=6e-4)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, math.nan, 0.02])[0] == pytest.approx(0.04)
    assert math.isnan(holm([0.02, math.nan])[1])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_many_equal_towers_give_no_false_find() -> None:
    """Twenty towers of equal quality: unadjusted about one in three tables shows a difference, with Holm one in 20."""
    plain = adjusted = 0
    for seed, rng in trials(100):
        towers = {str(i): of_values(rng.beta(3, 2, 40)) for i in range(20)}
        found = compare_with("0", towers, resamples=RESAMPLES, seed=seed)
        plain += any(one.p < 0.05 for one, _ in found.values())
        adjusted += any(p < 0.05 for _, p in found.values())
    assert adjusted <= 12 < plain


def test_power_grows_with_units_and_starts_at_the_level() -> None:
    assert power(0.0, 1.0, 50) == pytest.approx(0.05, abs=0.003)
    assert power(0.5, 1.0, 34) == pytest.approx(0.807, abs=0.005)  # noncentral t with 33 degrees of freedom
    assert power(0.02, 0.12, 800) > 0.99
    with pytest.raises(ConfigError, match="deviation"):
        power(0.1, 0.0, 50)
