"""The tables of the report: every score with its interval, what it was compared with, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dino_tower.eval.report.words import LAYERS, dot, number, unit
from dino_tower.eval.results import Results
from dino_tower.pages import escape

Row = Mapping[str, Any]
SURE = 0.05
COSTS = (
    ("parameters", "parameters", lambda cost: f"{cost['parameters'] / 1e6:.1f} M"),
    ("gflops", "GFLOP a picture", lambda cost: f"{cost['gflops']:.2f}"),
    ("tokens", "patches", lambda cost: f"{cost['tokens']:,}"),
    ("pixels", "pixels", lambda cost: f"{cost['height_pixels']} x {cost['width_pixels']}"),
    ("width", "features", lambda cost: f"{cost['width']:,}"),
    ("speed", "pictures/s", lambda cost: f"{cost['images_per_second']:.1f}"),
    ("memory", "peak MiB", lambda cost: f"{cost['peak_mib']:.0f}"),
)


def score_table(results: Results, data: str, names: Mapping[str, str], colours: Mapping[str, str], text: bool) -> str:
    """One data set: a row for each task and column, a cell for each tower; one body for each kind of layer.

    text: the tasks that need a text encoder, which form a table of their own.
    """
    rows = [row for row in results["scores"] if row["data"] == data and results["tasks"][row["task"]]["text"] == text]
    if not rows:
        return ""
    towers = [one for one in results["towers"] if one["role"] == "tower"]
    floors = list(dict.fromkeys(row["tower"] for row in rows if row["role"] in ("raw", "constant")))
    head = "".join(
        f'<th scope="col">{dot(colours[one["name"]])}{escape(names[one["name"]])}</th>' for one in towers
    ) + "".join(f'<th scope="col" class="soft">{escape(name)}</th>' for name in floors)
    bodies = "".join(
        f'<tbody data-layer="{layer}">{_body(results, rows, layer, [one["name"] for one in towers], floors)}</tbody>'
        for layer in LAYERS
        if any(row["layer"] == layer for row in rows)
    )
    return (
        '<div class="scroll card" tabindex="0" role="region" aria-label="scores"><table class="scores"><thead><tr>'
        f'<th scope="col">task</th>{head}</tr></thead>{bodies}</table></div>'
    )


def _body(results: Results, rows: list[Row], layer: str, towers: list[str], floors: list[str]) -> str:
    found = {(row["task"], row["metric"], row["column"], row["layer"], row["tower"]): row for row in rows}
    lines = []
    for task, column in dict.fromkeys((row["task"], row["column"]) for row in rows if row["layer"] == layer):
        facts = results["tasks"][task]
        for metric, words in facts["metrics"].items():
            mine = [found.get((task, metric, column, layer, name)) for name in towers]
            below = [
                found.get((task, metric, column, "last", name)) or found.get((task, metric, "", "", name))
                for name in floors
            ]
            if not any(row is not None for row in mine):
                continue
            twins = [found.get((task, metric, column, layer, f"random:{name}")) for name in towers]
            scale = _scale([*mine, *below, *twins])
            cells = [_cell(results, row, words, scale, twin) for row, twin in zip(mine, twins, strict=True)] + [
                _cell(results, row, words, scale) for row in below
            ]
            first = metric == facts["headline"]
            title = f"<b>{escape(facts['title'])}</b><br>" if first else ""
            shown = f'<span class="soft"> {escape(column)}</span>' if first else ""
            arrow = {"higher": "", "lower": " (lower is better)"}.get(words["better"], "")
            lines.append(
                f'<tr class="{"headline" if first else "more"}"><th scope="row">{title}{escape(words["title"])}'
                f"{escape(unit(words))}{arrow}{shown}</th>{''.join(cells)}</tr>"
            )
    return "".join(lines)


def _scale(rows: list[Row | None]) -> tuple[float, float]:
    """What the interval bars of one line of the table span."""
    ends = [
        end
        for row in rows
        if row is not None and row["score"] is not None
        for end in row["score"].values()
        if end is not None and end != row["score"]["units"]
    ]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    low = min(low, 0.0)
    return low, high if high > low else low + 1.0


def _cell(results: Results, row: Row | None, words: Row, scale: tuple[float, float], twin: Row | None = None) -> str:
    if row is None:
        return "<td></td>"
    score = row["score"]
    if score is None or score["value"] is None:
        reason = row["reason"] or "not defined for these units"
        return f'<td class="missing"><span title="{escape(reason)}">n/a</span><small>{escape(reason)}</small></td>'
    marks = _marks(results, row)
    ends = ""
    if score["low"] is not None:
        ends = f"<small>{number(score['low'], words)} to {number(score['high'], words)}</small>"
    under = ""
    if twin is not None and twin["score"] is not None and twin["score"]["value"] is not None:
        under = f'<small class="twin">untrained {number(twin["score"]["value"], words)}</small>'
    layer = next((one["layer"] for one in row["chosen"] if "layer" in one), "")
    chosen = f'<small class="twin">layer: {escape(layer)}</small>' if layer else ""
    title = f"{score['units']} units" + "".join(
        f"; {key} {value}" for one in row["chosen"][:1] for key, value in one.items()
    )
    return (
        f'<td title="{escape(title)}"><span class="value">{number(score["value"], words)}</span>{marks}{ends}'
        f"{_bar(score, scale, twin)}{under}{chosen}</td>"
    )


def _bar(score: Row, scale: tuple[float, float], twin: Row | None) -> str:
    def at(value: float) -> float:
        return 100 * (value - scale[0]) / (scale[1] - scale[0])

    parts = ""
    if score["low"] is not None:
        left, right = at(score["low"]), at(score["high"])
        parts += f'<i class="range" style="left:{left:.1f}%;width:{max(1.0, right - left):.1f}%"></i>'
    if twin is not None and twin["score"] is not None and twin["score"]["value"] is not None:
        parts += f'<i class="floor" style="left:{at(twin["score"]["value"]):.1f}%"></i>'
    parts += f'<i class="at" style="left:{at(score["value"]):.1f}%"></i>'
    return f'<span class="interval" aria-hidden="true">{parts}</span>'


def _marks(results: Results, row: Row) -> str:
    """What the comparisons say about a cell: against the reference, and whether it beats its untrained twin."""
    names = ("data", "task", "metric", "column", "layer", "tower")
    said, words = "", results["tasks"][row["task"]]["metrics"][row["metric"]]
    if words["better"] == "none":
        return ""
    for one in results["comparisons"]:
        if one["kind"] not in ("reference", "random") or any(one[name] != row[name] for name in names):
            continue
        better = (one["difference"] > 0) == (words["better"] == "higher")
        sure = one["p_holm"] is not None and one["p_holm"] < SURE
        says = f"{number(one['difference'], words)} against {one['against']}"
        says += "" if one["p_holm"] is None else f", p = {one['p_holm']:.2g} after Holm's correction"
        if one["kind"] == "reference" and sure:
            said += f'<b class="mark {"up" if better else "down"}" title="{escape(says)}">{"▲" if better else "▼"}</b>'
        if one["kind"] == "random" and not (sure and better):
            said += f'<b class="mark none" title="{escape(says)}">○</b>'
    return said


def cost_table(results: Results, names: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """One row for each tower and column."""
    lines = []
    for one in results["towers"]:
        if one["role"] != "tower":
            continue
        for column, cost in one["costs"].items():
            cells = "".join(f"<td>{escape(words(cost))}</td>" for _, _, words in COSTS)
            name = f"{dot(colours[one['name']])}{escape(names[one['name']])}"
            lines.append(f'<tr><th scope="row">{name}<span class="soft"> {escape(column)}</span></th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(title)}</th>' for _, title, _ in COSTS)
    return (
        '<div class="scroll card" tabindex="0" role="region" aria-label="costs"><table class="costs"><thead><tr>'
        f'<th scope="col">tower</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
