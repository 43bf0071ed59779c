"""Pictures of what each tower made of the same units, the failures of the reference first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino_tower.eval.entries import Entry
from dino_tower.eval.report.merged import Benchmark
from dino_tower.eval.report.words import number
from dino_tower.pages import data_uri, escape

UNITS = 8  # shown of each task
SIDE = 180


def galleries(bench: Benchmark, data: str, names: Mapping[str, str], truths: Mapping[str, Path]) -> str:
    """For each task with pictures: a row for each unit (worst first), a column for each tower, beside the truth.

    truths: {task: folder below an output with the units' pictures and truths}, as `write_truth` left them.
    """
    found = []
    for task, facts in bench.results["tasks"].items():
        entries = [
            one for one in bench.entries
            if one.data == data and one.task == task and one.layer == "last" and one.pictures and not one.reason
        ]  # fmt: skip
        if not entries:
            continue
        column = entries[0].column  # one of the two columns is enough to look at
        shown = [one for one in entries if one.column == column and one.role in ("tower", "random")]
        if shown:
            found.append(_gallery(bench, task, facts, column, shown, names, truths.get(task)))
    return "".join(found)


def _gallery(
    bench: Benchmark,
    task: str,
    facts: Mapping[str, Any],
    column: str,
    entries: Sequence[Entry],
    names: Mapping[str, str],
    truth: Path | None,
) -> str:
    words = facts["metrics"][facts["headline"]]
    reference = next((one for one in entries if one.tower == bench.results["reference"]), entries[0])
    scores = {one.tower: unit_scores(one, facts["headline"]) for one in entries}
    order = sorted(
        reference.pictures,
        key=lambda unit: _badness(scores[reference.tower].get(unit), words["better"]),
    )[:UNITS]
    known = _truths(truth)
    head = '<th scope="col">picture</th><th scope="col">truth</th>' if known else ""
    head += "".join(f'<th scope="col">{escape(names.get(one.tower, one.tower))}</th>' for one in entries)
    lines = []
    for unit in order:
        cells = ""
        if known:
            cells = "".join(f"<td>{_img(path, '')}</td>" for path in known.get(unit, ())) or "<td></td><td></td>"
        for one in entries:
            file = one.pictures.get(unit)
            value = scores[one.tower].get(unit)
            caption = "" if value is None else f"<small>{number(value, words)}</small>"
            image = _img(bench.outputs[one.key] / file, f"{names.get(one.tower, one.tower)}, {unit}") if file else ""
            cells += f"<td>{image}{caption}</td>"
        lines.append(f'<tr><th scope="row" class="soft">{escape(unit)}</th>{cells}</tr>')
    return (
        f'<details class="card gallery"><summary>{escape(facts["title"])} '
        f'<span class="soft">{escape(column)}, worst of {escape(names.get(reference.tower, reference.tower))} first'
        f'</span></summary><div class="scroll" tabindex="0" role="region" aria-label="pictures"><table><thead><tr>'
        f'<th scope="col">unit</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div></details>'
    )


def unit_scores(entry: Entry, metric: str) -> dict[str, float]:
    """{unit: its own score}: the mean over what it adds to, of numerator over denominator."""
    parts = entry.parts[metric]
    present = parts.denominator != 0
    ratio = np.where(present, parts.numerator / np.where(present, parts.denominator, 1), 0.0)
    counts = present.sum(1)
    values = ratio.sum(1) / np.maximum(counts, 1)
    return {unit: float(value) for unit, value, count in zip(entry.ids, values, counts, strict=False) if count}


def _badness(value: float | None, better: str) -> float:
    if value is None:
        return float("inf")
    return -value if better == "lower" else value


def _truths(folder: Path | None) -> dict[str, tuple[Path, Path]]:
    from dino_tower.checkpoint import read_json

    if folder is None or not (folder / "units.json").is_file():
        return {}
    units = read_json(folder / "units.json")["units"]
    return {unit: (folder / f"{i:03d}-picture.png", folder / f"{i:03d}-truth.png") for i, unit in enumerate(units)}


def _img(path: Path, alt: str) -> str:
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        return f'<img src="{data_uri(picture, 80, SIDE)}" alt="{escape(alt)}">'
