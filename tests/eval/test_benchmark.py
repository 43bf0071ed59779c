"""The benchmark from its command: what it prints, keeps, finds again and never does twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dino_tower import load_tower
from dino_tower.cli import main
from dino_tower.eval.results import read_results

TOWER = "builtin:scenes"
Command = Callable[..., list[str]]


def scores(results: dict[str, Any], **wanted: str) -> list[dict[str, Any]]:
    return [row for row in results["scores"] if all(row[name] == value for name, value in wanted.items())]


def test_every_score_stands_beside_its_floors(bench: Path) -> None:
    results = read_results(bench / "out")
    assert results["schema"] == "dino-tower/eval" and results["version"] == 1
    assert [one["role"] for one in results["towers"]] == ["tower", "random", "raw"]
    [own] = scores(results, task="knn", metric="10-nn", tower=TOWER, layer="last")
    [twin] = scores(results, task="knn", metric="10-nn", tower=f"random:{TOWER}", layer="last")
    [raw] = scores(results, task="knn", metric="10-nn", tower="raw pixels")
    [constant] = scores(results, task="knn", metric="10-nn", role="constant")
    assert own["score"]["value"] > max(one["score"]["value"] for one in (twin, raw, constant))
    assert own["score"]["units"] == 24 and own["score"]["low"] < own["score"]["value"] < own["score"]["high"]
    kinds = {one["kind"] for one in results["comparisons"] if one["task"] == "knn" and one["layer"] == "last"}
    assert kinds == {"random", "raw", "constant"}


def test_dense_tasks_have_both_columns_and_classification_its_own(bench: Path) -> None:
    results = read_results(bench / "out")
    assert {row["column"] for row in scores(results, task="in-context", tower=TOWER)} == {"tokens-6", "pixels-64"}
    assert {row["column"] for row in scores(results, task="knn", tower=TOWER)} == {"own"}
    costs = results["towers"][0]["costs"]
    assert costs["tokens-6"]["tokens"] == 36 and costs["pixels-64"]["tokens"] == 64
    assert costs["pixels-64"]["gflops"] > costs["tokens-6"]["gflops"] > 0


def test_the_best_layer_was_chosen_without_the_reported_pictures(bench: Path) -> None:
    """Layers are compared on a slice of train: choosing them again with other test pictures gives the same layer."""
    rows = scores(read_results(bench / "out"), task="in-context", tower=TOWER, layer="best", column="tokens-6")
    layers = {one["layer"] for row in rows for one in row["chosen"]}
    assert len(layers) == 1 and layers <= {"last", "raw", "last4", "quarters"}


def test_csv_and_json_hold_the_same_scores(bench: Path) -> None:
    lines = (bench / "out" / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + len(read_results(bench / "out")["scores"])
    assert lines[0].startswith("data,task,metric,tower,role,of,column,layer,value,low,high,units")


def test_a_finished_benchmark_is_not_computed_again(
    bench: Path, bench_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again reads results; with another task it reads features: no picture either time."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a picture was read")

    monkeypatch.setattr("dino_tower.eval.extraction._batches", refuse)
    shutil.copytree(bench / "out", tmp_path / "out")  # other tests read the results that are there
    features = ("--cache", str(bench / "cache"))
    assert main(bench_command(tmp_path, *features)) == 0
    assert read_results(tmp_path / "out")["scores"] == read_results(bench / "out")["scores"]
    assert main(bench_command(tmp_path, *features, "--suite", "in-context,clustering", "--layers", "last")) == 0
    found = read_results(tmp_path / "out")
    assert {row["task"] for row in found["scores"]} == {"in-context", "clustering"}


def test_an_interrupted_benchmark_keeps_what_was_finished(
    tmp_path: Path, bench: Path, bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second task: the first one's results are there, and going on does not compute it again."""
    from dino_tower.eval.tasks import TASKS

    ran: list[str] = []
    whole = {name: task.run for name, task in TASKS.items()}

    def counted(name: str, stop: bool) -> Any:
        def run(*args: Any) -> Any:
            ran.append(name)
            if stop:
                raise KeyboardInterrupt
            return whole[name](*args)

        return run

    def watch(stop: bool) -> None:
        for name in ("knn", "in-context"):
            object.__setattr__(TASKS[name], "run", counted(name, stop and name == "in-context"))

    words = bench_command(tmp_path, "--layers", "last", "--floors", "none", "--cache", str(bench / "cache"))
    try:
        watch(stop=True)
        assert main(words) == 130
        assert {row["task"] for row in read_results(tmp_path / "out")["scores"]} == {"knn"}
        assert ran == ["knn", "in-context"]
        ran.clear()
        watch(stop=False)
        assert main(words) == 0
    finally:
        for name, run in whole.items():
            object.__setattr__(TASKS[name], "run", run)
    assert set(ran) == {"in-context"}
    assert {row["task"] for row in read_results(tmp_path / "out")["scores"]} == {"knn", "in-context"}


def test_without_a_device_the_first_gpu_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Path, bench_command: Command
) -> None:
    """Help and docs said so, and every benchmark ran on the CPU; the page did not say on what."""
    asked: list[Any] = []

    def load(name: str, device: Any = None, dtype: str = "float32") -> Any:
        asked.append(device)
        return load_tower(name, dtype=dtype)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("dino_tower.eval.scoring.load_tower", load)
    words = bench_command(tmp_path, "--suite", "knn", "--layers", "last", "--floors", "none")
    assert main([*words, "--limit", "4"]) == 0
    assert asked == ["cuda"] and read_results(tmp_path / "out")["settings"]["device"] == "cuda"
    assert "on cuda; peak" in (tmp_path / "out" / "report.html").read_text()
    assert read_results(bench / "out")["settings"]["device"] == "cpu"


def test_two_processes_give_the_numbers_of_one(bench: Path, bench_command: Command, tmp_path: Path) -> None:
    """Each reads half of the pictures; features are the same bytes, and so is every score."""
    words = bench_command(tmp_path, "--floors", "none", "--layers", "last")[1:]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    launch += ["-m", "dino_tower", "eval", *words]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    alone, shared = read_results(bench / "out"), read_results(tmp_path / "out")
    own = [{**row, "seconds": 0} for row in alone["scores"] if (row["role"], row["layer"]) == ("tower", "last")]
    assert own == [{**row, "seconds": 0} for row in shared["scores"]]
    both = [file.relative_to(tmp_path / "cache") for file in (tmp_path / "cache").glob("??/*/data.npy")]
    assert len(both) >= 6
    for file in both:
        assert np.array_equal(np.load(bench / "cache" / file), np.load(tmp_path / "cache" / file))


def test_nan_is_null_in_json(bench: Path) -> None:
    """JSON has no NaN: other languages refuse a file that holds one."""
    text = (bench / "out" / "results.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in results.json"))
