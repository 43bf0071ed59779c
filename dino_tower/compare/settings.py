"""What a comparison is asked for, from its command line; all that can be said without torch."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dino_tower.cli import OneLineParser
from dino_tower.errors import ConfigError, unknown

RANDOM = "random"  # the group of untrained networks, always with them
PRETRAIN, EVAL, FOR = "--pretrain.", "--eval.", "--for."
# What a comparison decides itself, and how to say it.
LENGTH = "use --steps, --minutes or --tflops"
OWNED = {
    "data": "use --data", "output": "use --output", "seed": "use --seeds", "objective": "use --objectives",
    "preset": "use --preset", "steps": LENGTH, "epochs": LENGTH,
    "checkpoint_every": "it follows --looks", "faults.keep_every": "it follows --looks",
    "resume": "give the same command again to go on", "init_from": "objectives are compared from the same start",
    "stage": "objectives are compared from the same start", "print_config": "print one with dino-tower pretrain",
}  # fmt: skip
OWNED_OF_EVAL = {"data": "use --eval SOURCE", "output": "use --output", "reference": "the first objective is it"}
# Settings that all objectives take from one preset, unless --own leaves them to each; what `crops` and the others hold
# beside these is the objective's own recipe.
COMMON = ("arch", "batch_size", "workers", "crops", "pixels", "model", "compute")


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    steps, minutes, tflops: the budget of each training, one of the three. preset: where COMMON is taken from; recipes:
    "cpu" for the rest from OBJECTIVE_cpu, None as the preset's name ends. own: names of COMMON, or settings in them
    (crops.flip), that each objective takes from its own preset. looks: points on the way at which quality is measured.
    words: of pretrain, for all objectives; own_words: for one. benchmark: words of eval. launcher: words before `-m`.
    """

    objectives: tuple[str, ...]
    data: tuple[str, ...]
    output: str
    steps: int | None = None
    minutes: float | None = None
    tflops: float | None = None
    seeds: int = 2
    preset: str = "dino_cpu"
    recipes: str | None = None
    own: tuple[str, ...] = ()
    looks: int = 4
    look_suite: str | None = None
    words: tuple[str, ...] = ()
    own_words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    evaluate: tuple[str, ...] = ()
    benchmark: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()

    def trained_by(self) -> dict[str, Any]:
        """What must stay for trainings that are done to be of use; objectives, seeds and tasks may be added."""
        kept = ("data", "steps", "minutes", "tflops", "preset", "recipes", "own", "looks", "words")
        return {name: value for name, value in asdict(self).items() if name in kept}


def parser() -> OneLineParser:
    """What `dino-tower compare-objectives` takes, words for pretrain and eval aside."""
    found = OneLineParser(
        prog="dino-tower compare-objectives",
        description="Train objectives on one source with one architecture and budget, and compare their towers. "
        "--pretrain.KEY VALUE is a setting of all trainings (so is what follows --), --for.OBJECTIVE.KEY VALUE of one "
        "objective's, --eval.FLAG VALUE an option of the benchmark.",
    )
    add = found.add_argument
    add("--objectives", metavar="NAMES", required=True, help="with commas: dino,ibot,...; random init is always there")
    add("--data", metavar="SOURCE", nargs="+", action="extend", default=[], help="what all of them are trained on")
    add(
        "--output", metavar="DIR", required=True, help="runs, results and page; an interrupted comparison goes on there"
    )
    add("--steps", type=int, metavar="N", help="optimiser steps of each training")
    add("--minutes", type=float, metavar="M", help="in place of --steps: as many as each objective does in M minutes")
    add("--tflops", type=float, metavar="T", help="in place of --steps: as many as each objective does with T TFLOP")
    add("--seeds", type=int, metavar="S", default=2, help="trainings of each objective, in pairs (2)")
    add("--preset", metavar="NAME", default="dino_cpu", help="architecture, crops and batch of all (dino_cpu); the "
        "rest is of OBJECTIVE_cpu, where there is one")  # fmt: skip
    add("--recipes", metavar="END", help="take OBJECTIVE_END for the rest, in place of the end of --preset's name")
    add("--own", metavar="NAMES", default="", help=f"leave these to each objective's preset: {', '.join(COMMON)}")
    add("--eval", metavar="SOURCE", nargs="+", action="extend", default=[], help="judge on this (the data's test part)")
    add("--looks", type=int, metavar="N", default=4, help="times on the way at which quality is measured, too (4)")
    add("--look-suite", metavar="NAMES", help="by what (k-NN, else the first dense task that the data allows)")
    add("--launcher", metavar="WORDS", default="", help='e.g. "accelerate launch --num_processes 8"')
    return found


def read_words(argv: Sequence[str], objectives: Sequence[str]) -> Comparison:
    """The comparison that a command line asks for; objectives: those that there are. Raises ConfigError."""
    plain, words, own_words, benchmark = _sorted_out(argv)
    options = parser().parse_args(plain)
    _check(options, objectives)
    chosen = tuple(options.objectives.split(","))
    for name in own_words:
        if name not in chosen:
            raise unknown("objective", name, chosen, f"{FOR}{name}")
    own = tuple(options.own.split(",")) if options.own else ()
    return Comparison(
        chosen, tuple(options.data), options.output, options.steps, options.minutes, options.tflops, options.seeds,
        options.preset, options.recipes, own, options.looks, options.look_suite, tuple(words),
        {name: tuple(given) for name, given in own_words.items()}, tuple(options.eval), tuple(benchmark),
        tuple(shlex.split(options.launcher)),
    )  # fmt: skip


def _sorted_out(argv: Sequence[str]) -> tuple[list[str], list[str], dict[str, list[str]], list[str]]:
    """Words of the comparison, of all trainings, of one objective's, of the benchmark. ConfigError for OWNED ones."""
    plain: list[str] = []
    words: list[str] = []
    own: dict[str, list[str]] = {}
    benchmark: list[str] = []
    head, rest = list(argv), []
    if "--" in head:
        head, rest = head[: head.index("--")], head[head.index("--") + 1 :]
    into = plain
    for word in head:
        if word.startswith(PRETRAIN):
            into, word = words, "--" + word.removeprefix(PRETRAIN)
        elif word.startswith(EVAL):
            into, word = benchmark, "--" + word.removeprefix(EVAL)
        elif word.startswith(FOR):
            name, _, key = word.removeprefix(FOR).partition(".")
            into, word = own.setdefault(name, []), f"--{key}"
        elif word.startswith("--"):
            into = plain
        into.append(word)
    words += rest
    for given in (words, *own.values()):
        _refuse_owned(given, OWNED, PRETRAIN)
    _refuse_owned(benchmark, OWNED_OF_EVAL, EVAL)
    return plain, words, own, benchmark


def _refuse_owned(words: Sequence[str], owned: Mapping[str, str], prefix: str) -> None:
    for word in words:
        key = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and key in owned:
            raise ConfigError(f"compare-objectives: {prefix}{key.replace('_', '-')} is not yours to set: {owned[key]}")


def _check(options: argparse.Namespace, objectives: Sequence[str]) -> None:
    names = options.objectives.split(",")
    for name in names:
        if name == RANDOM:
            raise ConfigError("--objectives: random init is always compared with; leave it out")
        if name not in objectives:
            raise unknown("objective", name, objectives, "--objectives")
    doubled = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if doubled:
        raise ConfigError(f"--objectives: {doubled!r} is given twice")
    if not options.data:
        raise ConfigError(
            "compare-objectives: --data SOURCE is missing: a folder, hf:NAME, tar:PATTERN, a list, or scenes"
        )
    if [options.steps, options.minutes, options.tflops].count(None) != 2:
        raise ConfigError(
            "compare-objectives: give one of --steps N (equal steps), --minutes M (equal time), --tflops T (equal "
            "operations)"
        )
    for name, least in (("steps", 1), ("seeds", 1), ("looks", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"compare-objectives: --{name} {value}; it must be {least} or more")
    for name in ("minutes", "tflops"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"compare-objectives: --{name} {value:g}; it must be above 0")
    if options.tflops is not None and options.launcher:
        raise ConfigError("compare-objectives: how many pictures a step has is the launcher's matter: give --steps")
    for name in options.own.split(",") if options.own else ():
        if name.partition(".")[0] not in COMMON:
            raise unknown("group of settings", name, COMMON, "--own")
