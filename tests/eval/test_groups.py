"""Recipes trained with several seeds: do the intervals cover, and do the sentences say what the numbers say?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dino_tower.errors import ConfigError
from dino_tower.eval.entries import Entry
from dino_tower.eval.groups.results import Group, with_groups
from dino_tower.eval.groups.seeds import Judged, difference, judged, noise, over_seeds
from dino_tower.eval.groups.words import findings
from dino_tower.eval.stats import Parts, interval, of_values, score

TRIALS = 400


def recipes(rng: np.random.Generator, groups: int, seeds: int, units: int, of_seeds: float) -> list[Judged]:
    """Recipes that are all equally good: scores of units are shared by the seeds of a recipe, seeds add their own."""
    found = []
    starts = rng.normal(0, 0.03, seeds)  # a pair of seeds has one start
    for _ in range(groups):
        of_units = rng.normal(0.5, 0.35, units)
        each = [of_values(of_units + rng.normal(0, 0.35, units) + start + rng.normal(0, of_seeds)) for start in starts]
        found.append(judged(each, resamples=200))
    return found


@pytest.mark.parametrize("of_seeds", [0.0, 0.05, 0.3])
def test_intervals_cover_with_two_seeds(of_seeds: float) -> None:
    """The seeds' own share of the variance can be nothing or nearly all of it: 95 % holds, within 3 standard errors of
    the count below and whatever is on the safe side above."""
    hits, p_values = 0, []
    for trial in range(TRIALS):
        one = recipes(np.random.default_rng([trial, 5]), groups=5, seeds=2, units=60, of_seeds=of_seeds)
        found = difference(one[0], one[1], noise(one))
        assert found.low < found.difference < found.high
        hits += found.low <= 0 <= found.high
        p_values.append(found.p)
    assert hits / TRIALS > 0.95 - 3 * math.sqrt(0.05 * 0.95 / TRIALS)
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(1 - hits / TRIALS)


def test_one_seed_speaks_of_the_units_only() -> None:
    """Then the interval is nearly the bootstrap's own."""
    parts = of_values(np.random.default_rng(0).beta(3, 2, 400))
    one = judged([parts])
    plain, found = interval(parts), over_seeds(one, noise([one]))
    assert found.value == plain.value and found.units == 400
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-3)


def test_the_score_is_the_mean_over_seeds_and_seeds_widen_it() -> None:
    rng = np.random.default_rng(1)
    base = rng.beta(3, 2, 200)
    near, far = (judged([of_values(base), of_values(base + shift)]) for shift in (0.001, 0.2))
    assert over_seeds(far, noise([far])).value == pytest.approx(base.mean() + 0.1)
    width = [found.high - found.low for found in (over_seeds(one, noise([one])) for one in (near, far))]
    assert width[1] > 5 * width[0]
    # a score of ratios is formed from sums, seed by seed
    parts = Parts(rng.random((30, 2)), rng.random((30, 2)) + 1)
    assert judged([parts, parts]).values == pytest.approx([score(parts)] * 2)


def test_pairs_that_do_not_fit_are_refused_and_few_units_get_no_interval() -> None:
    few, more = judged([of_values(np.ones(5))]), judged([of_values(np.ones(5))] * 2)
    with pytest.raises(ConfigError, match="seeds in pairs: 1 against 2"):
        difference(few, more, noise([few]))
    with pytest.raises(ConfigError, match="unlike numbers of units: 5, 6"):
        judged([of_values(np.ones(5)), of_values(np.ones(6))])
    found = over_seeds(few, noise([few]))
    assert found.value == 1 and math.isnan(found.low)
    assert math.isnan(difference(few, few, noise([few])).p)


def results(better: dict[str, float]) -> dict[str, Any]:
    """Three groups, "random" at 0.4, with three seeds each on k-NN of 400 pictures."""
    rng = np.random.default_rng(0)
    draws = rng.random(400)
    entries, groups = [], []
    for name, level in {**better, "random": 0.4}.items():
        towers = {seed: f"{name}-{seed}" for seed in range(3)}
        for seed, tower in towers.items():
            hits = of_values((draws < level + 0.002 * seed).astype(float))
            entries.append(Entry(tower, "set", "knn", tower, "tower", "", "own", "last", {"10-nn": hits}))
        groups.append(Group(name, towers, "teacher", "" if name == "random" else "random"))
    metric = {"title": "10-NN", "unit": "%", "better": "higher"}
    tasks = {"knn": {"title": "k-NN", "text": False, "headline": "10-nn", "metrics": {"10-nn": metric}}}
    return with_groups({"data": [{"name": "set"}], "tasks": tasks, "scores": []}, entries, groups)


def test_what_was_found_is_said_whichever_way_it_went() -> None:
    good = findings(results({"dino": 0.7, "clip": 0.5}))
    assert good[0] == "dino is better than random init on 1 of 1 task."
    assert any("dino is highest (dino " in line and "dino over clip by +" in line for line in good)
    warned = findings({**results({"dino": 0.7, "clip": 0.5}), "cautions": ["Mind the class token."]})
    assert warned == [*good[:-1], "Mind the class token.", good[-1]]
    bad = findings(results({"dino": 0.2, "clip": 0.4}))
    assert bad[0] == "dino is better than random init on 0 of 1 task, worse on 1."
    assert bad[1] == "clip is not shown to differ from random init on any of 1 task."
    assert any("clip over dino by +" in line for line in bad)
    many = findings(results({"dino": 0.8, "ibot": 0.8, "clip": 0.2, "mae": 0.2}))
    assert any("shown to differ: dino over clip and mae; ibot over clip and mae." in line for line in many)
    same = findings(results({"dino": 0.5, "clip": 0.5}))
    assert any("dino and clip are highest" in line and "no two objectives are shown to differ" in line for line in same)
    assert same[-1].startswith("Intervals and tests are over 3 trainings in pairs")


def test_a_seed_without_a_score_leaves_the_other_pairs() -> None:
    """A training that failed must not take its objective from the table."""
    found = results({"dino": 0.7, "clip": 0.5})
    entries = [
        Entry(f"{name}-{seed}", "set", "knn", f"{name}-{seed}", "tower", "", "own", "last",
              {"10-nn": of_values(np.arange(100) < 50)})
        for name, seeds in {"dino": (0, 1), "random": (0, 1, 2)}.items() for seed in seeds
    ]  # fmt: skip
    groups = [Group("dino", {seed: f"dino-{seed}" for seed in range(3)}, "teacher", "random"),
              Group("random", {seed: f"random-{seed}" for seed in range(3)})]  # fmt: skip
    fewer = with_groups(found, entries, groups)
    assert [list(row["seeds"]) for row in fewer["group_scores"]] == [["0", "1"], ["0", "1", "2"]]
    (row,) = fewer["group_comparisons"]
    assert row["kind"] == "control" and list(row["seeds"]) == ["0", "1"] and row["difference"] == 0
