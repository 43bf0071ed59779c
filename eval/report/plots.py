"""Quality against cost: one small plot for each task, a point for each tower, its untrained twin hollow below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dino_tower.eval.report.words import number, unit
from dino_tower.eval.results import Results
from dino_tower.pages import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 320, 210, 46, 34, 14, 14


def cost_plots(results: Results, data: str, names: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """The headline of every task of one data set against GFLOP a picture (logarithmic), last layer."""
    costs = {one["name"]: one["costs"] for one in results["towers"]}
    rows = [
        row for row in results["scores"]
        if row["data"] == data and row["layer"] == "last" and row["role"] in ("tower", "random")
        and row["metric"] == results["tasks"][row["task"]]["headline"] and row["score"] is not None
        and row["score"]["value"] is not None and row["column"] in costs.get(row["tower"], {})
    ]  # fmt: skip
    found = []
    for task, column in dict.fromkeys((row["task"], row["column"]) for row in rows):
        points = [row for row in rows if (row["task"], row["column"]) == (task, column)]
        priced = [(costs[row["tower"]][column]["gflops"], row) for row in points]
        if any(cost > 0 for cost, _ in priced):
            found.append(_plot(results, task, column, [(c, row) for c, row in priced if c > 0], names, colours))
    return f'<div class="plots">{"".join(found)}</div>' if found else ""


def _plot(
    results: Results,
    task: str,
    column: str,
    points: list[tuple[float, Mapping[str, Any]]],
    names: Mapping[str, str],
    colours: Mapping[str, str],
) -> str:
    facts = results["tasks"][task]
    words = facts["metrics"][facts["headline"]]
    values = [
        v
        for _, row in points
        for v in (row["score"]["value"], row["score"]["low"], row["score"]["high"])
        if v is not None
    ]
    low, high = min(values), max(values)
    margin = (high - low or abs(high) or 1.0) * 0.08
    low, high = low - margin, high + margin
    first, last = min(c for c, _ in points), max(c for c, _ in points)
    first, last = first / 1.6, last * 1.6

    def x(cost: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(cost / first) / math.log(last / first)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    marks = []
    for cost, row in points:
        score, colour = row["score"], escape(colours[row["tower"]])
        says = escape(
            f"{names.get(row['tower'], row['tower'])}: {number(score['value'], words)}{unit(words)}, {cost:.2f} GFLOP"
        )
        at = f'cx="{x(cost):.1f}" cy="{y(score["value"]):.1f}"'
        if score["low"] is not None:
            ends = f'y1="{y(score["low"]):.1f}" y2="{y(score["high"]):.1f}"'
            marks.append(
                f'<line x1="{x(cost):.1f}" x2="{x(cost):.1f}" {ends} style="stroke:{colour}" class="whisker"/>'
            )
        style = f"fill:{colour}" if row["role"] == "tower" else "fill:var(--card)"
        marks.append(f'<circle {at} r="4.5" style="{style};stroke:{colour}"><title>{says}</title></circle>')
    lines = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}" class="grid"/>'
        f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{number(v, words)}</text>'
        for v in (low + margin, (low + high) / 2, high - margin)
    )
    ticks = "".join(
        f'<text x="{x(c):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{c:g}</text>'
        for c in _decades(first, last)
    )
    label = escape(f"{facts['title']}, {words['title']}{unit(words)} against GFLOP a picture, {column}")
    return (
        f'<figure class="card plot"><figcaption><b>{escape(facts["title"])}</b> '
        f'{escape(words["title"] + unit(words))} <span class="soft">{escape(column)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{lines}{ticks}{"".join(marks)}'
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 3}" text-anchor="middle" class="soft">GFLOP a picture</text>'
        "</svg></figure>"
    )


def _decades(first: float, last: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two, at most five of them."""
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1, 2, 5) if first <= digit * 10.0**power <= last]
    return found[:: max(1, -(-len(found) // 5))]
