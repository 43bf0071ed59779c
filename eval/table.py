"""Results as lines for a terminal: tasks are rows, towers are columns, floors stand beside them."""

from __future__ import annotations

from typing import Any

from dino_tower.eval.results import Results

LAYER = "last"


def table(results: Results) -> str:
    """One block a data set. A cell: score and interval; `*` above or below the reference after Holm's correction."""
    lines = []
    for data in results["data"]:
        rows = [row for row in results["scores"] if row["data"] == data["name"]]
        if rows:
            lines += ["", f"{data['name']}, {data['split']}: {data['items']} items", *_block(results, rows)]
    reference = results["reference"]
    lines += [
        "", f"score and 95 % interval over units; + better, - worse than {reference} (p < 0.05, Holm over towers);",
        "o not better than its own untrained twin; best layer, 256 features and all metrics: results.csv, report.html",
    ]  # fmt: skip
    return "\n".join(lines).lstrip("\n")


def _block(results: Results, rows: list[dict[str, Any]]) -> list[str]:
    towers = list(dict.fromkeys(row["tower"] for row in rows if row["role"] == "tower"))
    others = list(dict.fromkeys(row["tower"] for row in rows if row["role"] in ("raw", "constant")))
    twins = {row["of"]: row["tower"] for row in rows if row["role"] == "random"}
    head = ["task", "shown", *(_short(name) for name in towers), *others]
    cells, found = (
        [head],
        {(row["task"], row["metric"], row["column"], row["layer"], row["tower"]): row for row in rows},
    )
    shown = dict.fromkeys((row["task"], row["column"]) for row in rows if row["role"] != "constant")
    for task, column in shown:
        facts = results["tasks"][task]
        metric = facts["headline"]

        def cell(name: str, mark: bool = True, task=task, metric=metric, column=column, facts=facts) -> str:  # type: ignore[no-untyped-def]
            row = found.get((task, metric, column, LAYER, name)) or found.get((task, metric, "", "", name))
            if row is None:
                return ""
            text = _score(row, facts["metrics"][metric])
            return text + (_mark(results, row) if mark else "")

        title = f"{facts['title']}, {facts['metrics'][metric]['title']}"
        cells.append([title, column, *(cell(name) for name in towers), *(cell(name, False) for name in others)])
        if twins:
            cells.append(["  untrained twin", "", *(cell(twins.get(name, ""), False) for name in towers)])
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(len(head))]
    return ["  ".join(one.ljust(widths[i]) for i, one in enumerate(row)).rstrip() for row in cells]


def _score(row: dict[str, Any], metric: dict[str, Any]) -> str:
    score = row["score"]
    if score is None or score["value"] is None:
        return "n/a"
    scale = 100 if metric["unit"] == "%" else 1
    digits = 1 if metric["unit"] == "%" else 3
    value = f"{score['value'] * scale:.{digits}f}"
    if score["low"] is None:
        return value
    return f"{value} ({score['low'] * scale:.{digits}f}-{score['high'] * scale:.{digits}f})"


def _mark(results: Results, row: dict[str, Any]) -> str:
    names = ("data", "task", "metric", "column", "layer", "tower")
    mark, better_is = "", results["tasks"][row["task"]]["metrics"][row["metric"]]["better"]
    if better_is == "none":
        return ""
    for one in results["comparisons"]:
        if any(one[name] != row[name] for name in names) or one["p_holm"] is None:
            continue
        better = (one["difference"] > 0) == (better_is == "higher")
        sure = one["p_holm"] < 0.05
        if one["kind"] == "reference" and sure:
            mark += "+" if better else "-"
        if one["kind"] == "random" and not (sure and better):
            mark += "o"
    return f" {mark}" if mark else ""


def _short(name: str) -> str:
    """The end of a long path."""
    return name if len(name) <= 24 else "..." + name[-21:]
