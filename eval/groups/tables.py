"""The tables of the page: what training added, pairs of objectives, what each training took, where settings differ."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from dino_tower.eval.groups.words import Row, metric_of, places, rows_of, signed, title_of, verdict
from dino_tower.eval.report.words import dot, unit
from dino_tower.eval.results import Results
from dino_tower.pages import duration_text, escape

MARKS = {"better": ("up", "▲"), "worse": ("down", "▼"), "": ("none", "○")}


def difference_table(results: Results, tints: Mapping[str, str]) -> str:
    """A row for each task, a column for each objective: its difference from the untrained network."""
    trained = [one for one in results["groups"] if one["control"]]
    lines = ""
    for place in places(results):
        metric = metric_of(results, place[1])
        found = {row["group"]: row for row in rows_of(results, "group_comparisons", place, kind="control")}
        cells = "".join(_difference(found.get(one["name"]), metric) for one in trained)
        lines += f'<tr><th scope="row">{_title(results, place, metric)}</th>{cells}</tr>'
    head = "".join(f'<th scope="col">{dot(tints[one["name"]])}{escape(one["name"])}</th>' for one in trained)
    return _table("scores", "differences from the untrained network", f'<th scope="col">task</th>{head}', lines)


def pair_table(results: Results) -> str:
    """A row for each task, a column for each pair of objectives; empty text for a single objective."""
    pairs = list(dict.fromkeys(
        (row["group"], row["against"]) for row in results["group_comparisons"] if row["kind"] == "pair"
    ))  # fmt: skip
    if not pairs:
        return ""
    lines = ""
    for place in places(results):
        metric = metric_of(results, place[1])
        rows = rows_of(results, "group_comparisons", place, kind="pair")
        found = {(row["group"], row["against"]): row for row in rows}
        cells = "".join(_difference(found.get(pair), metric) for pair in pairs)
        lines += f'<tr><th scope="row">{_title(results, place, metric)}</th>{cells}</tr>'
    head = "".join(f'<th scope="col">{escape(a)} - {escape(b)}</th>' for a, b in pairs)
    table = _table("scores", "differences between objectives", f'<th scope="col">task</th>{head}', lines)
    return f"<h3>Between objectives</h3>{table}"


def _title(results: Results, place: tuple[str, str, str], metric: Row) -> str:
    worse = {"lower": ", lower is better", "none": ", describes only", "higher": ""}[metric["better"]]
    return f'{escape(title_of(results, place))}<span class="soft">{escape(unit(metric))}{worse}</span>'


def _difference(row: Row | None, metric: Row) -> str:
    if row is None:
        return '<td class="missing">n/a</td>'
    ends = "" if row["low"] is None else f"{signed(row['low'], metric)} to {signed(row['high'], metric)}"
    p = "" if row["p_holm"] is None else f"; p = {row['p_holm']:.2g} after Holm's correction"
    mark = ""
    if metric["better"] != "none" and row["p_holm"] is not None:
        kind, sign = MARKS[verdict(row, metric)]
        mark = f'<b class="mark {kind}">{sign}</b>'
    seeds = ", ".join(f"seed {seed} {signed(value, metric)}" for seed, value in row["seeds"].items())
    return (
        f'<td title="{escape(seeds + p)}"><span class="value">{signed(row["difference"], metric)}</span>{mark}'
        f"<small>{ends}</small></td>"
    )


def training_table(results: Results, tints: Mapping[str, str]) -> str:
    """A row for each objective: which network is benchmarked, and the budget that it took, a mean over seeds."""
    lines = ""
    for name in dict.fromkeys(row["objective"] for row in results["trainings"]):
        rows = [row for row in results["trainings"] if row["objective"] == name]
        done = [row for row in rows if row["finished"]]
        colour = tints.get(name, "var(--faint)")
        failed = "; ".join(f"seed {row['seed']}: {row['failure']}" for row in rows if row["failure"])
        cells = [rows[0]["preset"], rows[0]["network"], f"{len(done)} of {len(rows)}", f"{rows[0]['steps']:,}"]
        cells += [f"{done[0]['images']:,}", duration_text(mean(row["seconds"] for row in done)),
                  _operations(done[0]["gflops"])] if done else ["", "", ""]  # fmt: skip
        if failed:
            cells[2] += f" ({failed})"
        body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines += f'<tr><th scope="row">{dot(colour)}{escape(name)}</th>{body}</tr>'
    titles = ("objective", "preset", "benchmarked", "seeds done", "steps", "pictures seen", "time", "operations")
    return _table("costs", "trainings", "".join(f'<th scope="col">{title}</th>' for title in titles), lines)


def _operations(gflops: float) -> str:
    """A multiplication and an addition are two."""
    for size, name in ((1e6, "PFLOP"), (1e3, "TFLOP")):
        if gflops >= size:
            return f"{gflops / size:.3g} {name}"
    return f"{gflops:.3g} GFLOP"


def settings_table(results: Results) -> str:
    """Every setting in which the objectives differ."""
    rows = results["differences"]
    if not rows:
        return ""
    names = list(rows[0]["values"])
    lines = ""
    for row in rows:
        cells = "".join(f"<td>{escape(_setting(row['values'][name]))}</td>" for name in names)
        lines += f'<tr><th scope="row"><code>{escape(row["key"])}</code></th>{cells}</tr>'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("setting", *names))
    return (
        f'<details class="card gallery settings-of"><summary>Settings that differ <span class="soft">{len(rows)}; all '
        f"others are the same</span></summary>{_table('costs', 'settings that differ', head, lines)}</details>"
    )


def _setting(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _table(kind: str, name: str, head: str, lines: str) -> str:
    return (
        f'<div class="scroll card" tabindex="0" role="region" aria-label="{name}"><table class="{kind}"><thead><tr>'
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
