"""The page of a comparison of groups: what was found in words, each seed as a point, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dino_tower import __version__
from dino_tower.eval.groups.plots import courses, strip
from dino_tower.eval.groups.tables import difference_table, pair_table, settings_table, training_table
from dino_tower.eval.groups.words import label, places
from dino_tower.eval.report.gallery import galleries
from dino_tower.eval.report.merged import Benchmark
from dino_tower.eval.report.similarity import similarity
from dino_tower.eval.report.words import COLOURS, dot
from dino_tower.eval.sights import read_sights
from dino_tower.eval.truths import truth_folder
from dino_tower.pages import asset, escape, json_block, page

STYLES = ("report.css", "groups.css")
SCRIPTS = ("explorer_maps.js", "report.js")


def groups_page(bench: Benchmark, output: Path) -> str:
    """The page as text. `bench.results` has the keys of `groups.results` and, of a comparison of objectives, `budget`,
    `trainings`, `differences`, `looks` and `found`; output: the benchmark's directory, for its pictures."""
    results = bench.results
    trained = [one for one in results["groups"] if one["control"]]
    tints = {one["name"]: COLOURS[i % len(COLOURS)] for i, one in enumerate(trained)}
    tints |= {one["name"]: "var(--faint)" for one in results["groups"] if not one["control"]}
    explorers: list[dict[str, Any]] = []
    course = courses(results, tints)
    looked = "".join(_looked(bench, data, output, tints, explorers) for data in results["data"])
    body = (
        f"{_top(results, trained, tints)}<main>{_found(results)}"
        f'<section><div class="lead"><h2>Task by task</h2><p>Each point is one training, the bar is the mean over its '
        f"seeds, the line its 95 % interval over seeds and units.</p></div>"
        f'<div class="plots">{"".join(strip(results, place, tints) for place in places(results))}</div></section>'
        f'<section><div class="lead"><h2>What training added</h2><p>Difference from the untrained network of the same '
        f"seed, with its 95 % interval over seeds and units.</p></div>{difference_table(results, tints)}"
        f"{pair_table(results)}</section>"
        f"{_along(course) if course else ''}"
        f'<section><div class="lead"><h2>What it took</h2></div>{training_table(results, tints)}'
        f"{settings_table(results)}</section>{looked}{_notes(results)}</main>"
        f"<footer>dino-tower {escape(__version__)} · this page holds everything it shows and loads nothing</footer>"
        f"{json_block('report-data', {'explorers': explorers})}"
    )
    return page("Objectives compared: " + ", ".join(one["name"] for one in trained), body, STYLES, SCRIPTS)


def _top(results: Mapping[str, Any], trained: Sequence[Mapping[str, Any]], tints: Mapping[str, str]) -> str:
    budget = results["budget"]
    seeds = max(len(one["seeds"]) for one in trained)
    each = "one seed" if seeds == 1 else f"{seeds} seeds in pairs"
    legend = "".join(
        f"<li>{dot(tints[one['name']], not one['control'])}<b>{escape(label(one['name']))}</b> "
        f'<span class="soft">{escape(one["network"] or "untrained")}</span></li>'
        for one in results["groups"]
    )
    sets = ", ".join(f"{one['name']} ({one['items']:,} {one['split']} items)" for one in results["data"])
    title = "One objective beside its start" if len(trained) == 1 else f"{len(trained)} objectives compared"
    return (
        f'<header class="top"><div class="brand">{asset("mark.svg")}dino-tower</div><h1>{title}</h1>'
        f'<p class="what">Trained on <b>{escape(budget["data"])}</b>, {escape(budget["each"])} each, {each}; judged on '
        f"{escape(sets)}</p>"
        f'<ul class="legend">{legend}</ul></header>'
    )


def _found(results: Mapping[str, Any]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in results["found"])
    return f'<section><div class="lead"><h2>What was found</h2></div><ul class="card found">{lines}</ul></section>'


def _along(course: str) -> str:
    return (
        '<section><div class="lead"><h2>Along the way</h2><p>Checkpoints of every training, from the untrained network '
        "on: points are seeds, lines their mean. Training time is that of the machine it ran on.</p></div>"
        f"{course}</section>"
    )


def _looked(
    bench: Benchmark,
    data: Mapping[str, Any],
    output: Path,
    tints: Mapping[str, str],
    explorers: list[dict[str, Any]],
) -> str:
    """Pictures: what the first seed of each group made of them."""
    results, name = bench.results, data["name"]
    first = {one["towers"][0]: one["name"] for one in results["groups"] if one["towers"]}
    names = {tower: label(group) for tower, group in first.items()}
    colours = {tower: tints[group] for tower, group in first.items()}
    some = bench._replace(entries=[one for one in bench.entries if one.tower in first])
    truths = {task: place for task in data["tasks"] if (place := truth_folder(output, name, task)).is_dir()}
    pictures = galleries(some, name, names, truths)
    ids, sights = read_sights(output, name)
    sights = {tower: sights[tower] for tower in first if tower in sights}
    looked = ""
    if sights:
        looked, facts = similarity(len(explorers), output, name, ids, sights, names, colours)
        explorers.append(facts)
        looked = f"<h3>Pick a patch: what does each find like it?</h3>{looked}"
    if not looked and not pictures:
        return ""
    return (
        f'<section><div class="lead"><h2>Pictures of {escape(name)}</h2><p>The first seed of each.</p></div>{looked}'
        f"{f'<h3>What they made of it</h3>{pictures}' if pictures else ''}</section>"
    )


def _notes(results: Mapping[str, Any]) -> str:
    rows = [
        ("Pairs of seeds", "Trainings with one seed start from the same weights and see the same pictures in the same "
         "order; only the objective differs, and what the table of settings shows."),
        ("Intervals", "95 %, over units (pictures, objects, queries) and seeds together. How much seeds differ is "
         "asked of all objectives of a task at once, since two or three of one say little. None below 20 units."),
        ("▲ ▼", "Better or worse, p < 0.05 after Holm's correction over the comparisons of the task and kind."),
        ("○", "Not shown to differ. That is not the same as equal: see how wide the interval is."),
        ("Teacher, student", "The moving average is benchmarked where the objective learns from it, else the network "
         "that is trained."),
        ("Everything else", "results.json and results.csv hold every score of every training; runs/ holds the "
         "trainings, each a page with dino-tower show."),
    ]  # fmt: skip
    notes = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in rows)
    return f'<section class="notes"><h2>How to read it</h2><dl>{notes}</dl></section>'
