"""Groups of towers in small plots: every seed a point, the mean with its interval; and quality along the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from dino_tower.curves import nice_ticks
from dino_tower.eval.groups.words import Row, label, metric_of, rows_of, title_of
from dino_tower.eval.report.words import number, unit
from dino_tower.eval.results import Results
from dino_tower.pages import escape

WIDTH, LEFT, RIGHT, TOP, LINE, BOTTOM = 360, 92, 46, 28, 26, 30
COURSE_HEIGHT, COURSE_LEFT, COURSE_TOP = 220, 44, 12
# what quality stands against: key of `looks`, title, [(at least, divided by, unit)]
SPENT: dict[str, tuple[str, list[tuple[float, float, str]]]] = {
    "images": ("pictures seen", [(1e6, 1e6, "M"), (1e4, 1e3, "k"), (0, 1, "")]),
    "seconds": ("training time", [(7200, 3600, "h"), (180, 60, "min"), (0, 1, "s")]),
    "gflops": ("operations of training", [(1e6, 1e6, "PFLOP"), (1e3, 1e3, "TFLOP"), (0, 1, "GFLOP")]),
}


def strip(results: Results, place: tuple[str, str, str], tints: Mapping[str, str]) -> str:
    """One task: a line for each group with its seeds as points, and raw pixels and the constant answer as marks."""
    metric = metric_of(results, place[1])
    rows = [row for row in rows_of(results, "group_scores", place) if row["score"]["value"] is not None]
    if not rows:
        return ""
    floors = _floors(results, place)
    units = {row["score"]["units"] for row in rows}
    ends = [v for row in rows for v in (*row["seeds"].values(), row["score"]["low"], row["score"]["high"],
                                        row["score"]["value"]) if v is not None] + list(floors.values())  # fmt: skip
    low, high, ticks = _span(ends)
    height = TOP + LINE * len(rows) + BOTTOM

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    marks = [_tick(x(tick), TOP, height - BOTTOM, _text(tick, ticks, metric)) for tick in ticks]
    for i, (name, value) in enumerate(floors.items()):  # their names one above the other: they are often near
        marks.append(
            f'<line class="floor" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP - 4}" y2="{height - BOTTOM}">'
            f"<title>{escape(name)}: {number(value, metric)}{escape(unit(metric))}</title></line>"
            f'<text class="floor-name" x="{x(value):.1f}" y="{TOP - 8 - 10 * i}" text-anchor="middle">'
            f"{escape(name)}</text>"
        )
    marks += [_line(row, metric, tints[row["group"]], x, TOP + LINE * (i + 0.5)) for i, row in enumerate(rows)]
    title = title_of(results, place)
    said = "; ".join(f"{label(row['group'])} {number(row['score']['value'], metric)}{unit(metric)}" for row in rows)
    return (
        f'<figure class="card plot"><figcaption><b>{escape(title)}</b> <span class="soft">'
        f"{escape(unit(metric).strip())} {_better(metric)}{max(units):,} units</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(f"{title}: {said}")}">{"".join(marks)}'
        "</svg></figure>"
    )


def _line(row: Row, metric: Row, tint: str, x: Any, y: float) -> str:
    score, colour = row["score"], escape(tint)
    name = escape(label(row["group"]))
    parts = [f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" class="name">{name}</text>']
    if score["low"] is not None:
        parts.append(
            f'<line class="whisker" x1="{x(score["low"]):.1f}" x2="{x(score["high"]):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'style="stroke:{colour}"/>'
        )
    for seed, value in row["seeds"].items():
        if value is not None:
            parts.append(
                f'<circle class="seed" cx="{x(value):.1f}" cy="{y:.1f}" r="4" style="stroke:{colour}">'
                f"<title>{name}, seed {escape(seed)}: {number(value, metric)}{escape(unit(metric))}</title></circle>"
            )
    middle = x(score["value"])
    parts.append(
        f'<line class="mean" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 7:.1f}" y2="{y + 7:.1f}" '
        f'style="stroke:{colour}"/><text x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}" class="name">'
        f"{number(score['value'], metric)}</text>"
    )
    return "".join(parts)


def courses(results: Results, tints: Mapping[str, str]) -> str:
    """Quality along the way against each of SPENT: a figure for each task looked at and each of them."""
    looks = [row for row in results["looks"] if row["value"] is not None]
    found = []
    for place in dict.fromkeys((row["data"], row["task"], row["column"]) for row in looks):
        here = [row for row in looks if (row["data"], row["task"], row["column"]) == place]
        found += [_course(results, place, here, spent, tints) for spent in SPENT]
    return f'<div class="plots">{"".join(found)}</div>' if found else ""


def _course(
    results: Results, place: tuple[str, str, str], rows: Sequence[Row], spent: str, tints: Mapping[str, str]
) -> str:
    metric, (title, scales) = metric_of(results, place[1]), SPENT[spent]
    most = max(row[spent] for row in rows) or 1.0
    _, divided, what = next(scale for scale in scales if most >= scale[0])
    low, high, ticks = _span([row["value"] for row in rows])
    bottom = COURSE_HEIGHT - BOTTOM - 12

    def x(value: float) -> float:
        return COURSE_LEFT + (WIDTH - COURSE_LEFT - 16) * value / most

    def y(value: float) -> float:
        return COURSE_TOP + (bottom - COURSE_TOP) * (high - value) / (high - low)

    marks = [
        f'<line x1="{COURSE_LEFT}" x2="{WIDTH - 16}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>'
        f'<text x="{COURSE_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_text(tick, ticks, metric)}</text>'
        for tick in ticks
    ]
    across = [tick for tick in nice_ticks(0, most / divided, 4) if tick * divided <= most * 1.001]
    marks += [
        f'<text x="{x(tick * divided):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:,.6g}</text>'
        for tick in across
    ]
    for group in [one for one in results["groups"] if one["control"]]:
        marks.append(_path(group, rows, spent, metric, tints[group["name"]], x, y))
    words = f"{title}{f' ({what})' if what else ''}"
    return (
        f'<figure class="card plot"><figcaption><b>{escape(title_of(results, place))}</b> <span class="soft">'
        f"{escape(unit(metric).strip())} against {escape(title)}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {COURSE_HEIGHT}" role="img" '
        f'aria-label="{escape(title_of(results, place))} against {escape(words)}">{"".join(marks)}'
        f'<text x="{(COURSE_LEFT + WIDTH) / 2}" y="{COURSE_HEIGHT - 6}" text-anchor="middle">{escape(words)}</text>'
        "</svg></figure>"
    )


def _path(group: Row, rows: Sequence[Row], spent: str, metric: Row, tint: str, x: Any, y: Any) -> str:
    """The mean over seeds as a line from the untrained network on, each seed as a point."""
    mine = [row for row in rows if row["group"] == group["name"]]
    mine += [row for row in rows if row["group"] == group["control"] and row["seed"] in group["seeds"]]
    colour, steps = escape(tint), sorted({row["step"] for row in mine})
    each = {step: [row for row in mine if row["step"] == step] for step in steps}
    points = " ".join(
        f"{x(mean(row[spent] for row in at)):.1f},{y(mean(row['value'] for row in at)):.1f}" for at in each.values()
    )
    dots = "".join(
        f'<circle class="seed" cx="{x(row[spent]):.1f}" cy="{y(row["value"]):.1f}" r="3" style="stroke:{colour}">'
        f"<title>{escape(label(row['group']))}, seed {row['seed']}, step {row['step']:,}: "
        f"{number(row['value'], metric)}{escape(unit(metric))}</title></circle>"
        for row in mine
    )
    return f'<polyline class="course" points="{points}" style="stroke:{colour}"/>{dots}'


def _floors(results: Results, place: tuple[str, str, str]) -> dict[str, float]:
    """{raw, constant: what it reached}, where it was asked."""
    data, task, column = place
    names = {"raw": "raw pixels", "constant": "constant"}
    return {
        names[row["role"]]: row["score"]["value"]
        for row in results["scores"]
        if row["role"] in names and row["data"] == data and row["task"] == task and row["column"] in ("", column)
        and row["metric"] == results["tasks"][task]["headline"] and row["score"] and row["score"]["value"] is not None
    }  # fmt: skip


def _span(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """(low, high, ticks) of an axis that holds all values."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.01, high + 0.01
    ticks = nice_ticks(low, high, 3)
    return ticks[0], ticks[-1], ticks


def _tick(x: float, top: float, bottom: float, text: str) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" class="grid"/>'
        f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{text}</text>'
    )


def _text(tick: float, ticks: Sequence[float], metric: Row) -> str:
    scale = 100 if metric["unit"] == "%" else 1
    step = abs(ticks[1] - ticks[0]) * scale
    decimals = next((d for d in range(4) if abs(round(step, d) - step) < 1e-9), 4)
    return f"{tick * scale:.{decimals}f}"


def _better(metric: Row) -> str:
    return {"higher": "", "lower": "lower is better, ", "none": "describes, "}[metric["better"]]
