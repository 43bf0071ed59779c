"""The command from top to bottom: check everything, train, judge, look back along the way, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_tower.compare import benchmarking, pretraining
from dino_tower.compare.gathering import (
    Look,
    alarm_cautions,
    group_rows,
    look_rows,
    looks_of,
    setting_rows,
    training_rows,
    trainings_of,
)
from dino_tower.compare.notes import Noted, Notes, read_notes
from dino_tower.compare.pretraining import Recipe, merged
from dino_tower.compare.settings import Comparison, parser, read_words
from dino_tower.compare.trainings import (
    TRIAL_ROWS,
    TRIAL_STEPS,
    is_finished,
    last_words,
    plan_looks,
    seconds_a_step,
    train,
)
from dino_tower.errors import ConfigError
from dino_tower.signals import STOPPED, StopSignals

if TYPE_CHECKING:
    from dino_tower.sources import Source

FAILED = 1  # exit code where a training failed; those that did not are compared
Failures = dict[tuple[str, int], str]  # (objective, seed) -> what it said last


def main(argv: Sequence[str]) -> int:
    """`dino-tower compare-objectives`; its exit code. Raises ConfigError before anything is trained."""
    if {"-h", "--help"} & set(argv):
        parser().print_help()
        return 0
    return compare(read_words(argv, pretraining.objectives()))


def compare(asked: Comparison) -> int:
    """Do what is left to do, and write results.json and report.html; the exit code."""
    output, notes = Path(asked.output), read_notes(asked)
    recipes = {name: pretraining.recipe_of(asked, name) for name in asked.objectives}
    first = recipes[asked.objectives[0]]
    bench = benchmarking.bench_of(asked, first.config)
    source = pretraining.open_data(first)
    for recipe in recipes.values():
        _note(notes, recipe, asked, *pretraining.facts_of(recipe, source))
    look_suite = benchmarking.check(bench, asked.look_suite)
    notes.write(output)
    _announce(asked, recipes, notes, source.describe())

    with StopSignals() as signals:
        signals.patient = True  # a training is asked to stop, and waited for
        failures = _train_all(asked, recipes, notes, signals)
    if signals.received is not None:
        print(f"stopped by {signals.received}; the same command goes on from here", flush=True)
        return STOPPED
    done = [one for one in trainings_of(asked, notes) if is_finished(one.run)]
    if not done:
        raise ConfigError(f"{output}: no training came to its end; the last one said: {list(failures.values())[-1]}")

    controls = pretraining.controls_of(list(recipes.values()))
    untrained = _write_untrained(asked, recipes, controls, source)
    groups = group_rows(notes, done, controls, untrained)
    benchmarking.judge(bench, [tower for group in groups for tower in group["towers"].values()], output)
    looks = [*looks_of(asked, notes, done), *(Look(name, seed, 0, tower) for name, towers in untrained.items()
                                              for seed, tower in towers.items())]  # fmt: skip
    seen = benchmarking.look(bench, [one.tower for one in looks], output / "looks", look_suite) if asked.looks else None
    rows = training_rows(trainings_of(asked, notes), notes, failures)
    facts = {
        "budget": {"each": budget_of(asked), "data": source.describe(), "preset": asked.preset},
        "trainings": rows,
        "differences": setting_rows(list(recipes.values())),
        "cautions": [*pretraining.cautions_of(list(recipes.values())), *alarm_cautions(rows)],
        "looks": look_rows(seen, looks, asked, notes) if seen is not None else [],
        "look_tasks": seen["tasks"] if seen is not None else {},
    }
    page, found = benchmarking.write(output, groups, facts)
    print("\n" + "\n".join(found) + f"\n\nthe report, as a page:   {page}", flush=True)
    return FAILED if failures else 0


def _note(notes: Notes, recipe: Recipe, asked: Comparison, gflops: float, network: str) -> None:
    """Raises ConfigError for an objective that was trained with other settings here."""
    old = notes.objectives.get(recipe.objective)
    if old is not None and old.words != list(recipe.words):
        raise ConfigError(
            f"--output {asked.output}: {recipe.objective} was trained with other settings here "
            f"({' '.join(old.words)}); give the same to go on, or name a new directory"
        )
    steps = steps_of(asked, recipe, gflops) or (old.steps if old is not None else None)
    notes.objectives[recipe.objective] = Noted(list(recipe.words), recipe.preset, gflops, network, steps)


def steps_of(asked: Comparison, recipe: Recipe, gflops: float) -> int | None:
    """Of each training; None where they are still to be measured (equal time). gflops: of training on one picture."""
    if asked.tflops is None:
        return asked.steps
    batch = recipe.config.batch_size * recipe.config.compute.accumulate
    return max(1, int(1000 * asked.tflops / (gflops * batch)))


def budget_of(asked: Comparison) -> str:
    """In words."""
    if asked.steps is not None:
        return f"{asked.steps:,} steps"
    return f"{asked.minutes:g} minutes" if asked.minutes is not None else f"{asked.tflops:g} TFLOP"


def _announce(asked: Comparison, recipes: Mapping[str, Recipe], notes: Notes, data: str) -> None:
    config = recipes[asked.objectives[0]].config
    shared = f"{asked.preset}, {config.arch}, batches of {config.batch_size}"
    budget = f"{budget_of(asked)} for each training, {asked.seeds} of each objective"
    print(f"data         {data}\nbudget       {budget}\nall          {shared}")
    for name, one in notes.objectives.items():
        if name in recipes:
            print(f"{name:<12} {one.preset}, the {one.network} is benchmarked, {one.gflops:.2g} GFLOP a picture")
    print(end="", flush=True)


def _train_all(asked: Comparison, recipes: Mapping[str, Recipe], notes: Notes, signals: StopSignals) -> Failures:
    """Seed by seed, so that pairs are whole early. A training that fails keeps none of the others from being done."""
    failures: Failures = {}
    for name in asked.objectives:
        if notes.objectives[name].steps is None and signals.received is None:
            _settle_steps(asked, recipes[name], notes, signals)
    every = trainings_of(asked, notes)
    for number, one in enumerate(every, 1):
        if signals.received is not None:
            break
        title = f"training {number}/{len(every)}  {one.objective}, seed {one.seed}: {one.steps:,} steps"
        if is_finished(one.run):
            print(f"{title}: done already", flush=True)
            continue
        log = Path(asked.output) / "logs" / f"{one.run.name}.txt"
        print(f"{title} (follow it in {log})", flush=True)
        plan = plan_looks(one.steps, asked.looks)
        words = [
            *recipes[one.objective].words, "--data", *asked.data, "--seed", str(one.seed), "--steps", str(one.steps),
            "--checkpoint-every", str(plan.checkpoint_every), "--faults.keep-every", str(plan.keep_every),
            "--resume", "auto",
        ]  # fmt: skip
        code = train(words, one.run, log, asked.launcher, signals)
        if code and signals.received is None:
            failures[one.objective, one.seed] = last_words(log)
            print(f"             failed with exit code {code}: {last_words(log)}", flush=True)
    return failures


def _settle_steps(asked: Comparison, recipe: Recipe, notes: Notes, signals: StopSignals) -> None:
    """Equal time: a short trial run says how many steps fit into it. Noted at once, and never measured again."""
    assert asked.minutes is not None
    run = Path(asked.output) / "trials" / recipe.objective
    log = Path(asked.output) / "logs" / f"trial-{recipe.objective}.txt"
    if not is_finished(run):
        words = merged(recipe.words, ["--monitor.log-every", str(TRIAL_ROWS)])
        code = train([*words, "--data", *asked.data, "--steps", str(TRIAL_STEPS), "--resume", "auto"], run, log,
                     asked.launcher, signals)  # fmt: skip
        if signals.received is not None:
            return
        if code:
            raise ConfigError(f"{recipe.objective}: the trial run failed: {last_words(log)}")
    seconds = seconds_a_step(run)
    notes.objectives[recipe.objective].steps = steps = max(1, int(60 * asked.minutes / seconds))
    notes.write(Path(asked.output))
    print(f"{recipe.objective:<12} {seconds:.3g} s a step: {steps:,} steps in {asked.minutes:g} minutes", flush=True)


def _write_untrained(
    asked: Comparison, recipes: Mapping[str, Recipe], controls: Mapping[str, str], source: Source
) -> dict[str, dict[int, str]]:
    """{control: {seed: the network that trainings start from, as a tower}}."""
    found: dict[str, dict[int, str]] = {}
    for name, control in controls.items():
        if control not in found:
            folders = {seed: Path(asked.output) / "runs" / f"{control}-seed{seed}" for seed in range(asked.seeds)}
            for seed, folder in folders.items():
                pretraining.write_untrained(recipes[name], source, seed, folder)
            found[control] = {seed: str(folder) for seed, folder in folders.items()}
    return found
