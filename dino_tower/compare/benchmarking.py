"""The door to `eval`: what is judged on which data, all along the way and at the end, and the page of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dino_tower.compare.settings import Comparison
from dino_tower.errors import ConfigError
from dino_tower.sources.opening import open_source

GRID = 32  # patches along a side at most, where twice the size trained at has more
PROBES = "grounding-maps"  # beside the dense suite, which has the other grounding probe


class Bench(NamedTuple):
    """What the benchmark is asked for (an `eval.settings.Settings`), its towers still to be named; where features are
    kept, and how many GB of them."""

    settings: Any
    cache: str | None
    limit: float


def bench_of(asked: Comparison, config: Any) -> Bench:
    """The dense suite and both grounding probes.

    Towers of one architecture need one column, and as towers that are trained several times they need no several seeds
    of a probe; whole pictures are shown at twice the size trained at, on GRID x GRID patches at most. `--eval.FLAG`
    changes each of it. Raises ConfigError.
    """
    from dino_tower.eval.command import parser_of_eval, settings_of
    from dino_tower.eval.tasks import SUITES

    parser = parser_of_eval()
    suite = ",".join(dict.fromkeys((*SUITES["dense"], PROBES)))
    parser.set_defaults(suite=suite, columns="tokens", layers="last", seeds=1, no_reduced=True, tokens=_grid(config),
                        floors="raw,constant")  # fmt: skip
    data = [word for source in default_data(asked) for word in ("--data", source)]
    options = parser.parse_intermixed_args(["random:vits16", *data, "--output", asked.output, *asked.benchmark])
    if options.towers != ["random:vits16"]:
        raise ConfigError(f"--eval: {options.towers[-1]!r} belongs to no flag; the towers are those that are trained")
    return Bench(settings_of(options), options.cache, options.cache_limit)


def _grid(config: Any) -> int:
    """Patches along a side (of a ResNet: steps of its stride) at twice the size trained at, GRID at most."""
    import torch

    from dino_tower.architectures import build
    from dino_tower.families import family_of

    size = config.crops.global_size
    with torch.device("meta"):
        model = build(config.arch, image_size=size)
    return max(1, min(GRID, 2 * size // family_of(model).patch(model)))


def default_data(asked: Comparison) -> tuple[str, ...]:
    """What towers are judged on. Raises ConfigError where nothing is named and the data keeps no test part apart:
    what all of them were trained on shows nothing."""
    if asked.evaluate:
        return asked.evaluate
    from dino_tower.eval.datasets import open_dataset

    for source in asked.data:
        try:
            apart = open_source(source).has_splits
            open_dataset(source, "test")
        except ConfigError as error:
            raise ConfigError(f"--eval SOURCE is missing, and the data cannot be judged on: {error}") from None
        if not apart:
            raise ConfigError(
                f"--eval SOURCE is missing: {source!r} keeps no test part apart, and all of it would be trained on; "
                "name labelled pictures that are not in it, or put its own into folders train and test"
            )
    return asked.data


def check(bench: Bench, look_suite: str | None) -> str:
    """Read the first pictures of the data; the tasks of looks on the way: those asked for, else k-NN where there are
    labels, else the first dense task. Raises ConfigError where the data allows nothing that was asked for."""
    from dino_tower.eval.suite import facts_of, open_data, tasks_of

    splits = open_data(bench.settings)

    def allowed(suite: str) -> list[str]:
        """In the order of the suite."""
        asked = replace(bench.settings, suite=suite)
        there = {task for split in splits for task in facts_of(split, asked)["tasks"]}
        return [task.name for task in tasks_of(suite) if task.name in there]

    for suite in (bench.settings.suite, look_suite or "dense"):
        if not allowed(suite):
            raise ConfigError(f"--eval: the data allows none of the tasks asked for ({suite.replace(',', ', ')})")
    return look_suite or allowed("dense")[0]


def judge(bench: Bench, towers: Sequence[str], output: Path) -> Any:
    """Benchmark the towers into `output`, going on with what is there; the results."""
    from dino_tower.eval.command import measure

    return measure(replace(bench.settings, towers=tuple(towers)), output, bench.cache, bench.limit)


def look(bench: Bench, towers: Sequence[str], output: Path, suite: str) -> Any:
    """The same with a few tasks, without floors and costs."""
    output.parent.mkdir(parents=True, exist_ok=True)
    return judge(bench._replace(settings=replace(bench.settings, suite=suite, floors=(), costs=False)), towers, output)


def write(output: Path, groups: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> tuple[Path, list[str]]:
    """results.json with what holds for objectives, and report.html; (the page, what was found).

    groups: arguments of `eval.groups.results.Group`; facts: further keys of the results, which the page reads; its
    `look_tasks` describe tasks that were only looked at on the way.
    """
    from dino_tower.eval.groups.results import Group, with_groups
    from dino_tower.eval.groups.words import findings
    from dino_tower.eval.report import write_report
    from dino_tower.eval.report.merged import read_benchmarks
    from dino_tower.eval.results import plain, write_results

    bench = read_benchmarks([output])
    rest = {name: value for name, value in facts.items() if name != "look_tasks"}
    tasks = {**facts["look_tasks"], **bench.results["tasks"]}
    whole = {**bench.results, **plain(rest), "tasks": tasks}
    results = with_groups(whole, bench.entries, [Group(**one) for one in groups])
    results["found"] = findings(results)
    write_results(output, results)
    return write_report([output]), results["found"]
