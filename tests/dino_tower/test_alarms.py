"""An alarm must sound for a dead run and stay silent for a bouncing one."""

from __future__ import annotations

import math

from dino_tower.alarms import Alarms, collapse_rules

K = 256
TOP = math.log(K)
UNIFORM = {"entropy": TOP, "usage_entropy": TOP}
ONE = {"entropy": 0.0, "usage_entropy": 0.001}
HEALTHY = {"entropy": 0.6 * TOP, "usage_entropy": 0.95 * TOP}


def rung(rows, patience: int = 50, grace: int = 100) -> list[tuple[int, str]]:
    alarms = Alarms(collapse_rules(K), patience, grace)
    return [(step, name) for step, row in rows for name, _ in alarms.update(step, row)]


def test_each_collapse_is_named_once() -> None:
    for row, name in ((UNIFORM, "collapse-to-uniform"), (ONE, "collapse-to-one-prototype")):
        assert rung((step, row) for step in range(0, 400, 10)) == [(100, name)]


def test_a_bounce_is_no_alarm() -> None:
    """The loss of a healthy run jumps from 7.7 to 9.6 when the prototypes are set free: a level alone means nothing."""
    rows = [(step, UNIFORM if step % 50 else HEALTHY) for step in range(0, 1000, 10)]
    assert rung(rows) == []


def test_a_uniform_start_is_no_alarm_and_a_relapse_rings_again() -> None:
    assert rung((step, UNIFORM if step < 90 else HEALTHY) for step in range(0, 400, 10)) == []
    rows = [(step, HEALTHY if 200 <= step < 220 else ONE) for step in range(0, 400, 10)]
    assert [step for step, _ in rung(rows)] == [100, 270]


def test_the_message_says_what_to_change() -> None:
    alarms = Alarms(collapse_rules(K), patience=0, grace=0)
    assert "loss.teacher_temp" in alarms.update(1, ONE)[0][1]
