"""Curves keep what people look for: the extremes, the last value, the axis that holds it all."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from dino_tower.curves import Level, Mark, Series, curve, nice_ticks, smoothed, thinned


def test_thinning_keeps_ends_and_extremes() -> None:
    points = [(i, 0.0) for i in range(100_000)]
    points[31_234], points[77_777] = (31_234, 9.0), (77_777, -4.0)
    thin = thinned(points, 300)
    assert len(thin) <= 302
    assert {points[0], points[-1], points[31_234], points[77_777]} <= set(thin)
    assert thin == sorted(thin)
    assert thinned(points[:300], 300) == points[:300]


def test_smoothing_does_not_bend_a_line_or_lose_its_mean() -> None:
    flat = [(i, 5.0) for i in range(200)]
    assert [y for _, y in smoothed(flat)] == pytest.approx([5.0] * 200)
    zigzag = [(i, float(i % 2)) for i in range(1000)]
    inner = [y for _, y in smoothed(zigzag)][100:]
    assert all(abs(y - 0.5) < 0.05 for y in inner)
    steep = [(i, 10.0 / (1 + i)) for i in range(100)]
    assert smoothed(steep)[0] == (0, 10.0)
    assert smoothed([(3, 1.0)]) == [(3, 1.0)]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 7.7), (2e-6, 5e-4), (0.996, 1.0), (1234.0, 99999.0)])
def test_ticks_are_few_round_and_cover(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12 * abs(low)
    assert ticks[-1] >= high - 1e-12 * abs(high)
    step = ticks[1] - ticks[0]
    assert float(f"{step:.1e}") == pytest.approx(step)


def drawn_points(figure: str, name: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'class="{name}[^"]*" points="([^"]*)"', figure)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in found]


def test_a_curve_is_drawn_where_its_numbers_are() -> None:
    figure = curve("A", [Series("a", [(0, 0.0), (50, 0.5), (100, 1.0)])], 100, unit="%", levels=[Level("floor", 0.25)])
    assert drawn_points(figure, "line") == [[(0, 1000), (500, 500), (1000, 0)]]
    assert drawn_points(figure, "level") == [[(0, 750), (1000, 750)]]
    assert "floor 25.0 %" in figure
    assert "<b>100.0 %</b>" in figure
    hover = json.loads(unescape(re.search(r'data-hover="([^"]*)"', figure)[1]))
    assert hover["lines"] == [{"x": [0, 50, 100], "y": [0, 50, 100], "t": ["0.0 %", "50.0 %", "100.0 %"]}]


def test_a_spike_does_not_flatten_the_curve_but_a_level_is_always_in_view() -> None:
    points = [(i, 1.0 + (i % 3) / 10) for i in range(1000)]
    points[500] = (500, 1000.0)
    figure = curve("A", [Series("a", points, smooth=True)], 999)
    ticks = [float(t.replace(",", "")) for t in re.findall(r'<span style="bottom:[^"]*">([^<]*)</span>', figure)]
    assert max(ticks) < 100
    figure = curve("A", [Series("a", points[:400], smooth=True)], 999, levels=[Level("ln K", 8.0)])
    assert max(map(float, re.findall(r'<span style="bottom:[^"]*">([^<]*)</span>', figure))) >= 8


def test_a_constant_and_a_single_point_can_be_drawn() -> None:
    assert drawn_points(curve("A", [Series("a", [(0, 3.0), (10, 3.0)])], 10), "line")[0][0][1] == 500
    figure = curve("A", [Series("a", [(5, 0.0)])], 10, from_zero=True)
    assert 'class="dot s0" style="left:50.00%' in figure
    assert curve("A", [Series("a", [])], 10) == ""


def test_names_cannot_break_out_of_the_page() -> None:
    evil = '"><script>alert(1)</script>'
    figure = curve(evil, [Series(evil, [(0, 1.0), (1, 2.0)])], 1, hint=evil, levels=[Level(evil, 1.5)],
                   marks=[Mark(1, "alarm", evil)])  # fmt: skip
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(figure)
    assert "svg" in tags
    assert "script" not in tags
