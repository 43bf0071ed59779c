"""The whole report: what was found, by how much, at what cost, and what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dino_tower import __version__
from dino_tower.errors import ConfigError
from dino_tower.eval.report.gallery import galleries
from dino_tower.eval.report.merged import Benchmark, read_benchmarks
from dino_tower.eval.report.plots import cost_plots
from dino_tower.eval.report.similarity import similarity
from dino_tower.eval.report.summary import cost_table, score_table
from dino_tower.eval.report.words import LAYERS, colours, dot, short_names
from dino_tower.eval.sights import read_sights
from dino_tower.eval.truths import truth_folder
from dino_tower.pages import asset, escape, json_block, page, write_page

PAGE = "report.html"
STYLES = ("report.css",)
SCRIPTS = ("explorer_maps.js", "report.js")


def write_report(outputs: Sequence[str | Path], target: str | Path | None = None) -> Path:
    """One page of one or several benchmarks; target: a file, or a directory (report.html in the first output).

    Raises ConfigError for a directory without results, and for benchmarks that cannot stand side by side.
    """
    bench = read_benchmarks(outputs)
    path = Path(outputs[0]) / PAGE if target is None else Path(target)
    if path.is_dir():
        path = path / PAGE
    if not path.parent.is_dir():
        raise ConfigError(f"--output {path}: the folder {path.parent} does not exist")
    if "groups" in bench.results:  # of dino-tower compare-objectives
        from dino_tower.eval.groups.page import groups_page

        return write_page(path, groups_page(bench, Path(outputs[0])))
    return write_page(path, report_page(bench, [Path(output) for output in outputs]))


def report_page(bench: Benchmark, outputs: Sequence[Path]) -> str:
    """The page as text."""
    results = bench.results
    names = short_names([one["name"] for one in results["towers"]])
    names = {name: _twin_name(name, names) for name in names}
    tints = colours(results["towers"])
    layers = [layer for layer in LAYERS if any(row["layer"] == layer for row in results["scores"])]
    explorers: list[dict[str, Any]] = []
    sections = "".join(_data_section(bench, one, outputs, names, tints, explorers) for one in results["data"])
    body = (
        f"{_top(results, names, tints)}<main>{_switch(layers)}{sections}"
        f'<section><div class="lead"><h2>Costs</h2><p>Measured at the size of each column, {_device(results)}; peak '
        f"memory beyond the weights, four pictures at a time.</p></div>{cost_table(results, names, tints)}</section>"
        f"{_notes(results)}</main><footer>dino-tower {escape(__version__)} · this page holds everything it shows and "
        f"loads nothing</footer>{json_block('report-data', {'explorers': explorers})}"
    )
    return page("Benchmark: " + ", ".join(_tower_names(results, names)), body, STYLES, SCRIPTS)


def _twin_name(name: str, names: Mapping[str, str]) -> str:
    if name.startswith("random:") and name.removeprefix("random:") in names:
        return f"{names[name.removeprefix('random:')]}, untrained"
    return names[name]


def _tower_names(results: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    return [names[one["name"]] for one in results["towers"] if one["role"] == "tower"]


def _top(results: Mapping[str, Any], names: Mapping[str, str], tints: Mapping[str, str]) -> str:
    towers = [one for one in results["towers"] if one["role"] == "tower"]
    legend = "".join(
        f"<li>{dot(tints[one['name']])}<b>{escape(names[one['name']])}</b> "
        f'<span class="soft">{escape(one.get("family", ""))}, patch {one.get("patch", "?")}, '
        f"{one.get('width', '?')} features</span></li>"
        for one in towers
    )
    sets = ", ".join(f"{one['name']} ({one['items']:,} {one['split']} items)" for one in results["data"])
    scores = sum(row["score"] is not None for row in results["scores"])
    return (
        f'<header class="top"><div class="brand">{asset("mark.svg")}dino-tower</div><h1>{_title(len(towers))}</h1>'
        f'<p class="what"><b>{scores:,} scores</b> on {escape(sets)}</p><ul class="legend">{legend}</ul></header>'
    )


def _title(towers: int) -> str:
    return "One tower beside its floors" if towers == 1 else f"{towers} towers side by side"


def _switch(layers: Sequence[str]) -> str:
    options = "".join(
        f'<label><input type="radio" name="layer" value="{layer}"{"" if i else " checked"}><span>{LAYERS[layer]}</span>'
        "</label>"
        for i, layer in enumerate(layers)
    )
    more = '<label class="all"><input type="checkbox" id="all"> all metrics</label>'
    return (
        f'<div class="controls"><fieldset class="switch"><legend class="unseen">Features</legend>{options}</fieldset>'
        f"{more}</div>"
    )


def _data_section(
    bench: Benchmark,
    data: Mapping[str, Any],
    outputs: Sequence[Path],
    names: Mapping[str, str],
    tints: Mapping[str, str],
    explorers: list[dict[str, Any]],
) -> str:
    name = data["name"]
    table = score_table(bench.results, name, names, tints, text=False)
    text = score_table(bench.results, name, names, tints, text=True)
    if not table and not text:
        return ""
    truths = {
        task: folder
        for output in outputs
        for task in data["tasks"]
        if (folder := truth_folder(output, name, task)).is_dir()
    }
    pictures = galleries(bench, name, names, truths)
    looked = ""
    for output in outputs:
        ids, sights = read_sights(output, name)
        sights = {tower: sights[tower] for tower in names if tower in sights}  # each beside its twin, as in the table
        if sights:
            html, facts = similarity(len(explorers), output, name, ids, sights, names, tints)
            explorers.append(facts)
            looked += f"<h3>Pick a patch: what does each tower find like it?</h3>{html}"
    plots = cost_plots(bench.results, name, names, tints)
    untaught = len(data.get("untaught", ()))  # not in the results of earlier releases
    absent = (
        f" <b>{untaught} of its classes have test pictures and, with --limit, no training picture.</b>"
        if untaught
        else ""
    )
    return (
        f'<section><div class="lead"><h2>{escape(name)}</h2><p>{escape(data["kind"])}, {escape(data["split"])}: '
        f"{data['items']:,} items, {data['train_items']:,} to train on; split by {escape(data['chosen_by'])}."
        f"{absent}</p></div>"
        f"{table}{f'<h3>With the text encoder</h3>{text}' if text else ''}"
        f"{f'<h3>Quality against cost</h3>{plots}' if plots else ''}{looked}"
        f"{f'<h3>What they made of it</h3>{pictures}' if pictures else ''}</section>"
    )


def _device(results: Mapping[str, Any]) -> str:
    device = results["settings"].get("device")
    return f"on {escape(device)}" if device else "on the device of the run"


def _notes(results: Mapping[str, Any]) -> str:
    rows = [
        ("Columns", "“tokens” shows every tower the same number of patches, “pixels” the same number of pixels; “own” "
         "is what a tower's processor does; “native” keeps a picture's shape. The columns are never mixed."),
        ("Intervals", "95 %, from resampling units (pictures, objects, queries) and forming the score again; the seeds "
         "of a task stand side by side in it. None is given below 20 units."),
        ("▲ ▼", f"Better or worse than {results['reference']} on the same units, p < 0.05 after Holm's correction over "
         "the towers of the row."),
        ("○", "Not shown to be better than the same architecture untrained: whatever the score, it is not learned."),
        ("Best layer", "Chosen on a tenth of the training pictures, never on those that are reported."),
        ("256 features", "The last layer projected onto 256 principal components of the training pictures (fewer where "
         "these differ in fewer directions), since width alone helps a probe."),
    ]  # fmt: skip
    notes = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in rows)
    return f'<section class="notes"><h2>How to read it</h2><dl>{notes}</dl></section>'
