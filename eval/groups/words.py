"""What was found, in sentences, whichever way it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dino_tower.eval.report.words import number, unit
from dino_tower.eval.results import Results

SURE = 0.05
FEW = 5  # seeds below which intervals lean on few trainings
FEW_PAIRS = 2  # whose differences are told in a sentence
Row = Mapping[str, Any]


def findings(results: Results) -> list[str]:
    """One sentence for each objective, one for each task, what to know of single objectives, what all rests on."""
    trained = [one["name"] for one in results["groups"] if one["control"]]
    lines = [line for name in trained if (line := _of_objective(results, name))]
    lines += [line for place in places(results) if (line := _of_task(results, place))]
    seeds = {len(one["seeds"]) for one in results["groups"] if one["control"]}
    return [*lines, *results.get("cautions", []), _rests_on(min(seeds, default=0))]


def places(results: Results) -> list[tuple[str, str, str]]:
    """(data, task, column) of every headline, in the order of the benchmark."""
    return list(dict.fromkeys((row["data"], row["task"], row["column"]) for row in results["group_scores"]))


def rows_of(results: Results, key: str, place: tuple[str, str, str], **wanted: str) -> list[Row]:
    """Rows of `group_scores` or `group_comparisons` at one place."""
    return [
        row for row in results[key]
        if (row["data"], row["task"], row["column"]) == place and all(row[name] == one for name, one in wanted.items())
    ]  # fmt: skip


def metric_of(results: Results, task: str) -> Row:
    """The words of a task's headline."""
    facts = results["tasks"][task]
    words: Row = facts["metrics"][facts["headline"]]
    return words


def title_of(results: Results, place: tuple[str, str, str]) -> str:
    """A task with its metric, and its data set where there are several."""
    data, task, column = place
    where = f", {data}" if len(results["data"]) > 1 else ""
    several = len({other[2] for other in places(results) if other[:2] == place[:2]}) > 1
    shown = f", {column}" if several else ""
    return f"{results['tasks'][task]['title']} ({metric_of(results, task)['title']}{where}{shown})"


def label(name: str) -> str:
    """A group's name as people read it."""
    return name.replace("random", "random init", 1) if name.startswith("random") else name


def verdict(row: Row, metric: Row) -> str:
    """ "better", "worse" or "" (not shown) of a comparison."""
    if row["p_holm"] is None or row["p_holm"] >= SURE or metric["better"] == "none":
        return ""
    return "better" if (row["difference"] > 0) == (metric["better"] == "higher") else "worse"


def signed(value: float, metric: Row) -> str:
    """+2.1, -0.3 or 0.0."""
    text = number(value, metric)
    bare = text.lstrip("-")
    if not bare.strip("0."):
        return bare
    return text if text.startswith("-") else f"+{text}"


def gap(row: Row, metric: Row) -> str:
    """A difference with its interval: +2.1 (+0.4 to +3.8)."""
    text = signed(row["difference"], metric)
    return text if row["low"] is None else f"{text} ({signed(row['low'], metric)} to {signed(row['high'], metric)})"


def _of_objective(results: Results, name: str) -> str:
    rows = [row for row in results["group_comparisons"] if row["group"] == name and row["kind"] == "control"]
    judged = [row for row in rows if metric_of(results, row["task"])["better"] != "none" and row["p_holm"] is not None]
    if not judged:
        return ""
    said = [verdict(row, metric_of(results, row["task"])) for row in judged]
    better, worse, all_of = said.count("better"), said.count("worse"), len(said)
    against = label(judged[0]["against"])
    if not better and not worse:
        return f"{name} is not shown to differ from {against} on any of {_tasks(all_of)}."
    parts = [f"better than {against} on {better} of {_tasks(all_of)}"]
    parts += [f"worse on {worse}"] if worse else []
    parts += [f"not shown to differ on {all_of - better - worse}"] if better + worse < all_of else []
    return f"{name} is {', '.join(parts)}."


def _of_task(results: Results, place: tuple[str, str, str]) -> str:
    metric = metric_of(results, place[1])
    rows = [row for row in rows_of(results, "group_scores", place) if row["score"]["value"] is not None]
    trained = {one["name"] for one in results["groups"] if one["control"]}
    mine = [row for row in rows if row["group"] in trained]
    if not mine or metric["better"] == "none":
        return ""
    best = (max if metric["better"] == "higher" else min)(row["score"]["value"] for row in mine)
    first = [row["group"] for row in mine if number(row["score"]["value"], metric) == number(best, metric)]
    word = "highest" if metric["better"] == "higher" else "lowest, which is better"
    values = ", ".join(f"{label(row['group'])} {number(row['score']['value'], metric)}" for row in rows)
    line = title_of(results, place)
    if len(mine) > 1:
        line += f": {listed(first)} {'is' if len(first) == 1 else 'are'} {word}"
    pairs = rows_of(results, "group_comparisons", place, kind="pair")
    if not pairs:
        return f"{line}: {values}{unit(metric)}."
    clear = [row if verdict(row, metric) == "better" else _turned(row) for row in pairs if verdict(row, metric)]
    differ = f"shown to differ: {_clear(clear, metric)}" if clear else "no two objectives are shown to differ"
    return f"{line} ({values}{unit(metric)}); {differ}."


def _turned(row: Row) -> Row:
    """The better one first."""
    ends = {"low": -row["high"], "high": -row["low"]}
    return {**row, "group": row["against"], "against": row["group"], "difference": -row["difference"], **ends}


def _clear(rows: Sequence[Row], metric: Row) -> str:
    """Who is better than whom; by how much where these are few, the table has the rest."""
    if len(rows) <= FEW_PAIRS:
        return "; ".join(f"{row['group']} over {row['against']} by {gap(row, metric)}" for row in rows)
    over: dict[str, list[str]] = {}
    for row in rows:
        over.setdefault(row["group"], []).append(row["against"])
    return "; ".join(f"{name} over {listed(others)}" for name, others in over.items())


def _rests_on(seeds: int) -> str:
    if seeds < 2:
        return (
            "One training of each: the intervals speak of other pictures, not of other trainings; more seeds may turn "
            "every difference round."
        )
    few = "; with so few, read each seed as a point" if seeds < FEW else ""
    return f"Intervals and tests are over {seeds} trainings in pairs and over the units of each task{few}."


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
