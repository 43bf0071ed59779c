"""`dino-tower eval` and `dino-tower report`. torch is imported when the words have been understood."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_tower.cli import OneLineParser
from dino_tower.errors import ConfigError

if TYPE_CHECKING:
    from dino_tower.eval.extraction import Processes
    from dino_tower.eval.settings import Settings

SETTINGS = "benchmark.json"


def evaluate(argv: list[str]) -> None:
    """`dino-tower eval TOWER [TOWER ...] --data SOURCE ... --output DIR`: benchmark towers side by side."""
    options = parser_of_eval().parse_intermixed_args(argv)
    settings, output = settings_of(options), Path(options.output)
    _check_output(output)
    run_benchmark(settings, output, options.cache, options.cache_limit)


def settings_of(options: argparse.Namespace) -> Settings:
    """What the words of `dino-tower eval` ask for. Raises ConfigError."""
    from dino_tower.eval.settings import Settings

    return Settings(
        tuple(options.towers), tuple(options.data), options.suite, options.tokens, options.pixels,
        _words(options.columns), options.layers, not options.no_reduced, options.seeds, _words(options.floors),
        options.limit, options.feature_dtype, options.dtype, options.device, options.reference, options.seed,
    )  # fmt: skip


def parser_of_eval() -> OneLineParser:
    """What `dino-tower eval` takes."""
    parser = OneLineParser(prog="dino-tower eval", description="Benchmark the dense features of towers side by side.")
    add = parser.add_argument
    add("towers", metavar="TOWER", nargs="+", help="a directory, a Hub id, a run, timm:NAME, builtin:scenes, ...")
    add("--data", metavar="SOURCE", action="append", default=[], help="a data set, or `scenes` (repeat for several)")
    add("--output", metavar="DIR", required=True, help="where results go; an interrupted benchmark goes on there")
    add("--suite", metavar="NAME", default="quick", help="quick (default), dense, full, tasks, or several: quick,depth")
    add("--tokens", type=int, metavar="N", default=32, help="column of equal tokens: N x N patches (32)")
    add("--pixels", type=int, metavar="N", default=512, help="column of equal pixels: N x N pixels (512)")
    add("--columns", metavar="NAMES", default="tokens,pixels", help="which of the two (tokens,pixels)")
    add("--layers", metavar="WHICH", default="choose", help="choose (also the best on a slice of train) or last")
    add("--no-reduced", action="store_true", help="do not also score features projected to 256")
    add("--seeds", type=int, metavar="N", default=3, help="of what depends on chance (3)")
    add("--floors", metavar="NAMES", default="random,raw,constant", help="what stands below every tower, or none")
    add("--reference", metavar="TOWER", help="the tower that others are compared with (the first)")
    add("--limit", type=int, metavar="N", help="at most N pictures of each split, to try things out")
    add("--device", metavar="NAME", help="cuda, cpu, ... (the first GPU if there is one; each process its own)")
    add("--dtype", metavar="NAME", default="float32", help="what towers compute in (float32)")
    add("--feature-dtype", metavar="NAME", default="float16", help="what patches are kept in (float16)")
    add("--seed", type=int, metavar="N", default=0, help="the first of the seeds (0)")
    add("--cache", metavar="DIR", help="where features are kept (DINO_TOWER_CACHE, or the user's cache folder)")
    add("--cache-limit", type=float, metavar="GB", default=50.0, help="how large the cache may become (50)")
    return parser


def run_benchmark(settings: Settings, output: Path, cache: str | None = None, cache_limit: float = 50.0) -> Any:
    """Run it, write results.json, results.csv and report.html into `output`, print the table; returns the results."""
    from dino_tower.eval.report import write_report
    from dino_tower.eval.table import table

    results = measure(settings, output, cache, cache_limit)
    if results is not None:
        print(f"\n{table(results)}\n")
        print(write_report([output]))
    return results


def measure(settings: Settings, output: Path, cache: str | None = None, cache_limit: float = 50.0) -> Any:
    """Run it and write results.json and results.csv into `output`; returns the results.

    Under `accelerate launch` every process reads its share of the pictures; the first does the rest, None elsewhere.
    """
    import json

    from dino_tower.checkpoint import replace_text
    from dino_tower.eval.cache import Cache
    from dino_tower.eval.cost import Cost
    from dino_tower.eval.entries import Entry
    from dino_tower.eval.results import assemble, write_results
    from dino_tower.eval.scoring import Bench
    from dino_tower.eval.suite import check_towers, facts_of, open_data, run_suite

    if cache_limit <= 0:
        raise ConfigError(f"--cache-limit {cache_limit}; it must be above 0")
    processes = shared_by()
    settings = replace(settings, device=settings.device or own_device())
    first = processes.rank == 0
    bench = Bench(
        settings, output, Cache(cache, int(cache_limit * 2**30)), processes, print if first else lambda line: None
    )
    splits = open_data(settings)
    check_towers(settings)
    if first:
        output.mkdir(parents=True, exist_ok=True)
        replace_text(output / SETTINGS, json.dumps(asdict(settings), indent=1) + "\n")
    entries: list[Entry] = []
    costs: dict[str, dict[str, Cost]] = {}
    towers: dict[str, dict[str, Any]] = {}
    try:
        for found in run_suite(bench, splits):
            if isinstance(found, Entry):
                entries.append(found)
            else:
                towers.setdefault(found.name, {}).update(found.facts)
                costs.setdefault(found.name, {}).update(found.costs)
    finally:  # what has been finished is shown, whatever stopped the rest
        if first and entries:
            data = [facts_of(split, settings) for split in splits]
            results = assemble(entries, costs, asdict(settings), data, towers, settings.reference or settings.towers[0])
            write_results(output, results)
    return results if first else None


def shared_by() -> Processes:
    """This process among those of a launcher; alone without one."""
    from dino_tower.eval.extraction import Processes

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def own_device() -> str:
    """The first GPU, of processes that share the work each its own (`shared_by` has chosen it); a CPU without one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def report(argv: list[str]) -> None:
    """`dino-tower report DIR [DIR ...] [--output FILE]`: one page of several benchmarks."""
    parser = OneLineParser(prog="dino-tower report", description="Draw one or several benchmarks as one HTML page.")
    parser.add_argument("results", metavar="DIR", nargs="+", help="directories that `dino-tower eval` wrote")
    parser.add_argument("--output", metavar="FILE", help="the page (report.html in the first directory)")
    options = parser.parse_args(argv)
    from dino_tower.eval.report import write_report

    print(write_report(options.results, options.output))


def _words(text: str) -> tuple[str, ...]:
    return () if text in ("", "none") else tuple(text.split(","))


def _check_output(output: Path) -> None:
    """A directory of a benchmark goes on; one that holds anything else is not written into."""
    if output.is_file():
        raise ConfigError(f"--output {output} is a file; give a directory")
    if output.is_dir() and any(output.iterdir()) and not (output / SETTINGS).is_file():
        raise ConfigError(f"--output {output} holds files that are no benchmark's; give a new directory")
