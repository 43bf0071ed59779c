"""Several benchmarks read as one: their towers side by side where they judged the same units of the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dino_tower.errors import ConfigError
from dino_tower.eval.cost import Cost
from dino_tower.eval.entries import Entry, read_entry
from dino_tower.eval.results import Results, assemble, read_results


class Benchmark(NamedTuple):
    """Results, their entries, and the directory of each entry's pictures: {entry key: output}."""

    results: Results
    entries: list[Entry]
    outputs: dict[str, Path]


def read_benchmarks(outputs: Sequence[str | Path]) -> Benchmark:
    """Raises ConfigError for a directory without results, and for two that judged unlike units under one name."""
    if not outputs:
        raise ConfigError("report: no directory given")
    folders = [Path(output) for output in outputs]
    each = [read_results(folder) for folder in folders]
    entries: dict[tuple[str, ...], Entry] = {}
    where: dict[str, Path] = {}
    for folder, results in zip(folders, each, strict=True):
        for key in dict.fromkeys(row["entry"] for row in results["scores"]):
            entry = read_entry(folder, key)
            if entry is None:
                raise ConfigError(f"{folder}: entry {key} of results.json is missing; run the benchmark again")
            entries[entry.data, entry.task, entry.tower, entry.column, entry.layer] = entry
            where[entry.key] = folder
    found = list(entries.values())
    _check_units(found)
    if len(each) == 1:
        return Benchmark(each[0], found, where)
    data = {one["name"]: one for results in each for one in results["data"]}
    towers = {one["name"]: one for results in each for one in results["towers"]}
    costs: Mapping[str, Mapping[str, Cost]] = {
        name: {column: Cost(**cost) for column, cost in one["costs"].items()} for name, one in towers.items()
    }
    facts = {name: {k: one[k] for k in ("family", "patch", "width") if k in one} for name, one in towers.items()}
    settings = {"merged": [str(folder) for folder in folders]}
    merged = assemble(found, costs, settings, list(data.values()), facts, each[0]["reference"])
    return Benchmark(merged, found, where)


def _check_units(entries: Sequence[Entry]) -> None:
    seen: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if entry.role == "constant" or entry.reason:
            continue
        first = seen.setdefault((entry.data, entry.task), entry)
        if list(first.ids) != list(entry.ids):
            raise ConfigError(
                f"report: {first.tower} and {entry.tower} were judged on unlike pictures of {entry.data} "
                f"({entry.task}); give the benchmarks the same data and --limit"
            )
