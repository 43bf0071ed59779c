"""Curves as inline SVG, drawn here, so that a page shows them without any script; hovering is added by curves.js.

The SVG is stretched to whatever width the page has; text and dots are HTML over it, so nothing is distorted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dino_tower.pages import escape, number_text

Point = tuple[int, float]
MOST_POINTS = 360  # more than the pixels a curve has to show them on


@dataclass(frozen=True)
class Series:
    """One line: (step, value) ascending by step. smooth: draw a running mean over the faint raw line."""

    name: str
    points: Sequence[Point]
    smooth: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with: a floor, a bound."""

    name: str
    value: float
    text: str = ""  # in place of the value


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: kind is "alarm" or "resume"."""

    step: int
    kind: str
    name: str


def curve(
    title: str,
    series: Sequence[Series],
    end: int,
    hint: str = "",
    unit: str = "",
    levels: Sequence[Level] = (),
    marks: Sequence[Mark] = (),
    from_zero: bool = False,
) -> str:
    """One chart over the steps 0..end as an HTML figure; empty text if no series has a point.

    unit "%": values are shares. from_zero: the axis starts at 0.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    thin = [thinned(one.points) for one in drawn]
    lines = [thinned(smoothed(one.points)) if one.smooth else raw for one, raw in zip(drawn, thin, strict=True)]
    low, high, ticks = _axis([y for line in (*thin, *lines) for _, y in line], lines, levels, from_zero)
    end = max(end, 1)

    def place(points: Sequence[Point]) -> str:
        return " ".join(f"{1000 * x / end:.1f},{1000 - 1000 * (y - low) / (high - low):.1f}" for x, y in points)

    grid = "".join(f'<line class="grid" x1="0" x2="1000" y1="{y}" y2="{y}"/>' for y in _heights(ticks, low, high, 1000))
    raws = "".join(
        f'<polyline class="raw s{i}" points="{place(raw)}"/>'
        for i, (one, raw) in enumerate(zip(drawn, thin, strict=True))
        if one.smooth
    )
    strong = "".join(f'<polyline class="line s{i}" points="{place(line)}"/>' for i, line in enumerate(lines))
    floors = "".join(f'<polyline class="level" points="{place([(0, f.value), (end, f.value)])}"/>' for f in levels)
    happened = "".join(
        f'<line class="mark {escape(m.kind)}" x1="{1000 * m.step / end:.1f}" x2="{1000 * m.step / end:.1f}" '
        f'y1="0" y2="1000"><title>{escape(m.name)}</title></line>'
        for m in marks
    )
    names = "".join(
        f'<span class="level-name{" below" if f.value > low + 0.85 * (high - low) else ""}" '
        f'style="bottom:{100 * (f.value - low) / (high - low):.2f}%">{escape(f.name)} '
        f"{escape(f.text) or number_text(f.value, unit)}</span>"
        for f in levels
    )
    keys = "".join(
        f'<span class="key s{i}"><i></i><span>{escape(one.name)}</span> <b>{number_text(line[-1][1], unit)}</b></span>'
        for i, (one, line) in enumerate(zip(drawn, lines, strict=True))
    )
    axis = "".join(
        f'<span style="bottom:{100 - y / 10:.2f}%">{_tick_text(tick, ticks, unit)}</span>'
        for tick, y in zip(ticks, _heights(ticks, low, high, 1000), strict=True)
    )
    lone = "".join(  # a line of one point has no length: show it as a dot
        f'<i class="dot s{i}" style="left:{100 * line[0][0] / end:.2f}%;'
        f'bottom:{100 * (line[0][1] - low) / (high - low):.2f}%"></i>'
        for i, line in enumerate(lines)
        if len(line) == 1
    )
    hover = {
        "end": end,
        "lines": [
            {
                "x": [x for x, _ in line],
                "y": [round(100 * (y - low) / (high - low), 1) for _, y in line],
                "t": [number_text(y, unit) for _, y in line],
            }
            for line in lines
        ],
    }
    return (
        f'<figure class="curve" data-hover="{escape(json.dumps(hover, separators=(",", ":")))}">'
        f'<figcaption><h3>{escape(title)}</h3><div class="keys">{keys}</div></figcaption>'
        f'<div class="plot"><div class="axis" aria-hidden="true">{axis}</div>'
        f'<div class="canvas" tabindex="0" role="img" aria-label="{escape(_spoken(title, drawn, lines, unit))}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        f"{grid}{happened}{floors}{raws}{strong}</svg>{names}{lone}</div>"
        f'<div class="steps" aria-hidden="true"><span>0</span><span>{_short(end / 2)}</span><span>{_short(end)}</span>'
        f'</div></div><p class="hint">{escape(hint)}</p></figure>'
    )


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points with the outline kept: of every stretch its lowest and its highest."""
    if len(points) <= most:
        return list(points)
    kept: list[Point] = []
    width = len(points) / (most / 2)
    for i in range(most // 2):
        stretch = points[int(i * width) : max(int(i * width) + 1, int((i + 1) * width))]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return sorted({points[0], *kept, points[-1]})


def smoothed(points: Sequence[Point], share: float = 0.04) -> list[Point]:
    """The mean over a window of `share` of the run around each point.

    The window shrinks towards the start, where a loss falls fast and a mean would lie; at the end it is one-sided,
    since the last value is what people quote and must not be one noisy batch.
    """
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    half = round(len(points) * share / 2)
    result = []
    for i, (x, _) in enumerate(points):
        left, right = i - min(half, i), i + min(half, i, len(points) - 1 - i) + 1
        result.append((x, (sums[right] - sums[left]) / (right - left)))
    return result


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers covering low..high: steps of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _axis(
    values: list[float], lines: Sequence[Sequence[Point]], levels: Sequence[Level], from_zero: bool
) -> tuple[float, float, list[float]]:
    """(low, high, ticks). A few spikes may leave the chart, so that the rest of it can be read; a line never does."""
    ordered = sorted(values)
    trim = len(ordered) // 100
    inside = ordered[trim : len(ordered) - trim]
    inside += [y for line in lines for _, y in line] + [level.value for level in levels] + ([0.0] if from_zero else [])
    low, high = min(inside), max(inside)
    if high - low < 1e-9 * max(abs(low), abs(high)) or high == low:
        pad = abs(high) * 0.1 or 1.0
        low, high = (0.0 if low >= 0 and from_zero else low - pad), high + pad
    ticks = nice_ticks(low, high)
    return ticks[0], ticks[-1], ticks


def _heights(ticks: Sequence[float], low: float, high: float, size: float) -> list[float]:
    return [round(size - size * (tick - low) / (high - low), 1) for tick in ticks]


def _tick_text(tick: float, ticks: Sequence[float], unit: str) -> str:
    step = (ticks[1] - ticks[0]) * (100 if unit == "%" else 1)
    value = tick * (100 if unit == "%" else 1)
    if max(abs(t) for t in ticks) < 1e-2 and unit != "%":
        power = math.floor(math.log10(max(abs(t) for t in ticks)))
        return "0" if tick == 0 else f"{tick / 10**power:.3g}e{power}"
    if abs(value) >= 10_000:
        return _short(value)
    decimals = next((d for d in range(6) if abs(round(step, d) - step) < 1e-9 * max(1, abs(step)) + 1e-12), 6)
    return f"{value:,.{decimals}f}{' %' if unit == '%' else ''}"


def _short(value: float) -> str:
    """A step count in little room: 640, 12.5k, 1.2M."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e6 if letter == 'M' else 1e3):.3g}{letter}"
    return f"{value:,.0f}"


def _spoken(title: str, drawn: Sequence[Series], lines: Sequence[Sequence[Point]], unit: str) -> str:
    parts = [
        f"{one.name} from {number_text(line[0][1], unit)} to {number_text(line[-1][1], unit)}"
        for one, line in zip(drawn, lines, strict=True)
    ]
    return f"{title}: {', '.join(parts)}"
