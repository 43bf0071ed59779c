"""The whole of `dino-tower compare-objectives`, made small: two objectives, two seeds, six steps, tiny pictures.

It is run in two goes, as after an interruption: the first trains one of four runs.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dino_tower import load_tower
from dino_tower.cli import main
from dino_tower.config import from_tree, read_yaml
from dino_tower.eval.results import read_results
from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.settings import Config
from dino_tower.run.log import read_run

pytestmark = pytest.mark.timeout(600)  # four processes load torch; on a busy machine that takes minutes
SMALL = """--pretrain.model.width 32 --pretrain.model.depth 2 --pretrain.model.heads 2 --pretrain.batch-size 8
    --pretrain.workers 0 --pretrain.crops.global-size 32 --pretrain.crops.local-size 16 --pretrain.crops.locals 2
    --pretrain.head.prototypes 64 --pretrain.head.hidden 32 --pretrain.head.bottleneck 16
    --pretrain.compute.precision no --pretrain.compute.cpu true --pretrain.monitor.log-every 1
    --eval.tokens 4 --eval.limit 24 --eval.suite knn,in-context,grounding-regions""".split()


class Made(NamedTuple):
    """What the command left behind, what it printed in each go, and its exit codes."""

    output: Path
    printed: list[str]
    codes: list[int]


def command(objectives: str, seeds: int, *more: str) -> list[str]:
    """The words of the small comparison, which is written into the folder that we are in."""
    return ["compare-objectives", "--objectives", objectives, "--data", "scenes", "--steps", "6", "--looks", "3",
            "--seeds", str(seeds), "--output", "out", *SMALL, "--eval.cache", "cache", *more]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("compare")
    printed, codes = [], []
    for objectives, seeds in (("dino", 1), ("dino,mae", 2)):
        with pytest.MonkeyPatch.context() as patch:
            said: list[str] = []
            patch.setattr("builtins.print", lambda *words, said=said, **_: said.append(" ".join(map(str, words))))
            patch.chdir(folder)
            codes.append(main(command(objectives, seeds)))
        printed.append("\n".join(said))
    return Made(folder / "out", printed, codes)


@pytest.fixture
def results(made: Made) -> dict[str, Any]:
    return read_results(made.output)


def test_what_is_done_is_not_done_again(made: Made) -> None:
    """The second go trained three runs of four and went on with the first's."""
    assert made.codes == [0, 0]
    assert "training 1/4  dino, seed 0: 6 steps: done already" in made.printed[1]
    assert len(re.findall(r"training ./4 .*follow it in", made.printed[1])) == 3
    for name in ("dino-seed0", "dino-seed1", "mae-seed0", "mae-seed1"):
        log = read_run(made.output / "runs" / name)
        assert log.ended and len(log.starts) == 1 and log.last_step == 6


def test_results_have_the_benchmarks_schema_and_the_objectives_beside_it(results: dict[str, Any]) -> None:
    towers = {one["name"] for one in results["towers"] if one["role"] == "tower"}
    groups = {one["name"]: one for one in results["groups"]}
    assert {name: len(one["towers"]) for name, one in groups.items()} == {"dino": 2, "mae": 2, "random": 2}
    assert {tower for one in groups.values() for tower in one["towers"]} == towers
    # DINO learns from its moving average, MAE has no use for one
    assert [groups[name]["network"] for name in ("dino", "mae", "random")] == ["teacher", "student", ""]
    each = {(row["task"], row["tower"]): row for row in results["scores"]
            if row["metric"] == results["tasks"][row["task"]]["headline"]}  # fmt: skip
    tasks = {"knn", "in-context", "grounding-regions"}
    assert {(row["task"], row["group"]) for row in results["group_scores"]} == {(t, g) for t in tasks for g in groups}
    for row in results["group_scores"]:
        seeds = [each[row["task"], tower]["score"]["value"] for tower in groups[row["group"]]["towers"]]
        assert list(row["seeds"].values()) == pytest.approx(seeds)
        assert row["score"]["value"] == pytest.approx(sum(seeds) / 2)
        assert row["score"]["low"] <= row["score"]["value"] <= row["score"]["high"]
    kinds = {(row["group"], row["against"], row["kind"]) for row in results["group_comparisons"]}
    assert kinds == {("dino", "random", "control"), ("mae", "random", "control"), ("dino", "mae", "pair")}


def test_quality_is_measured_along_the_way_against_what_it_took(results: dict[str, Any]) -> None:
    steps = {(row["group"], row["seed"]): [] for row in results["looks"]}
    for row in results["looks"]:
        steps[row["group"], row["seed"]].append(row["step"])
        assert row["task"] == "knn" and row["images"] == 8 * row["step"]
        assert (row["seconds"] > 0) == (row["gflops"] > 0) == (row["step"] > 0)
    assert {name: sorted(each) for name, each in steps.items()} == {
        **{(name, seed): [2, 4, 6] for name in ("dino", "mae") for seed in (0, 1)},
        ("random", 0): [0], ("random", 1): [0],
    }  # fmt: skip
    trainings = {(row["objective"], row["seed"]): row for row in results["trainings"]}
    assert all(row["finished"] and row["images"] == 48 and row["seconds"] > 0 for row in trainings.values())
    assert {name: row["gflops"] > 0 for name, row in trainings.items()} == dict.fromkeys(trainings, True)


def test_only_the_objective_differs(made: Made, results: dict[str, Any]) -> None:
    """Pairs start from one network, which is the untrained tower they are compared with, on one architecture and crops;
    settings that differ are all in the results."""
    settings = {name: read_yaml(made.output / "runs" / f"{name}-seed1" / "config.yaml") for name in ("dino", "mae")}
    assert settings["dino"]["seed"] == settings["mae"]["seed"] == 1
    for key in ("arch", "model", "batch_size", "pixels", "compute", "data", "steps"):
        assert settings["dino"][key] == settings["mae"][key]
    unlike = {
        key for key in settings["dino"]["crops"] if settings["dino"]["crops"][key] != settings["mae"]["crops"][key]
    }
    assert unlike <= {"locals"}
    random = load_tower(str(made.output / "runs" / "random-seed1")).weights()
    for one in settings.values():
        network, _ = make_networks(from_tree(Config(), one, "config.yaml"), torch.device("cpu"), 1)
        weights = network.backbone.state_dict()
        assert set(weights) == set(random) and all(torch.equal(weights[name], random[name]) for name in weights)
    differ = {row["key"] for row in results["differences"]}
    assert "optim.beta2" in differ and not differ & {"arch", "model.width", "batch_size", "crops.jitter_p"}


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stands_alone_at_desktop_and_phone_width(
    width: int, made: Made, results: dict[str, Any], browser: Any, tmp_path: Path
) -> None:
    page = made.output / "report.html"
    browser.requests.clear()
    browser.errors.clear()
    browser.open(page, width, 900)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth)")
    browser.screenshot(tmp_path / "shot.png")
    assert (tmp_path / "shot.png").stat().st_size > 20_000
    assert browser.errors == []
    assert set(browser.requests) == {page.resolve().as_uri()}
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page.read_text(encoding="utf-8"))
    assert browser.run("[...document.querySelectorAll('.found li')].map(l => l.innerText)") == results["found"]
    # every seed is a point, on the strip of its task and along the way
    strips = len(results["group_scores"]) * 2
    along = 3 * sum(1 if row["step"] else 2 for row in results["looks"])  # both objectives begin at the untrained one
    assert browser.run("document.querySelectorAll('circle.seed').length") == strips + along
    shown = browser.run("[...document.querySelectorAll('table.scores .value')].map(c => c.innerText)")
    assert [abs(float(one)) for one in shown] == [
        abs(round(100 * row["difference"], 1))
        for kind in ("control", "pair")
        for task in dict.fromkeys(row["task"] for row in results["group_scores"])
        for row in results["group_comparisons"]
        if row["kind"] == kind and row["task"] == task
    ]


def test_the_page_can_be_drawn_again_from_what_is_kept(made: Made, tmp_path: Path) -> None:
    assert main(["report", str(made.output), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == (made.output / "report.html").read_text()


@pytest.fixture
def copy(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The comparison and its cache, to change them; we are in the folder that holds both."""
    shutil.copytree(made.output, tmp_path / "out")
    shutil.copytree(made.output.parent / "cache", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def test_a_training_that_fails_is_told_and_the_others_are_compared(copy: Path, capfd: Any) -> None:
    """The launcher `false` lets no training begin; those that are done need none, and are not judged again either."""
    assert main(command("dino,mae,ibot", 1, "--launcher", "false")) == 1
    said = capfd.readouterr().out
    assert "training 3/3  ibot, seed 0: 6 steps" in said and "failed with exit code 1" in said
    assert "reading scenes" not in said
    found = read_results(copy)
    assert [one["name"] for one in found["groups"]] == ["dino", "mae", "random"]
    failed = [row for row in found["trainings"] if row["failure"]]
    assert [(row["objective"], row["finished"]) for row in failed] == [("ibot", False)]
    assert "ibot" in (copy / "report.html").read_text(encoding="utf-8")


def test_a_sick_training_is_told_beside_its_scores(copy: Path, capfd: Any) -> None:
    """The targets of an I-JEPA collapsed, its log said so, and the page showed its scores as I-JEPA's."""
    with (copy / "runs/mae-seed1/log.jsonl").open("a") as log:
        for step in (4, 6):
            row = {"kind": "alarm", "step": step, "name": "flat", "message": f"all are one at {step}, it seems. Do so."}
            log.write(json.dumps(row) + "\n")
    assert main(command("dino,mae", 2)) == 0
    said = "mae was not well: in 1 of 2 trainings alarm flat rang (all are one at 4, it seems)"
    assert said in capfd.readouterr().out and said in (copy / "report.html").read_text(encoding="utf-8")
    alarms = {(row["objective"], row["seed"]): row["alarms"] for row in read_results(copy)["trainings"]}
    assert alarms["mae", 1]["flat"].startswith("all are one at 4") and not alarms["mae", 0]


def test_another_comparison_is_not_mixed_in(made: Made, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (made.output / "comparison.json").read_text()
    monkeypatch.chdir(made.output.parent)
    words = command("dino", 1)
    for change, says in (
        (["--steps", "7"], "this comparison was trained with steps 6, not 7"),
        (["--looks", "4"], "this comparison was trained with looks 3, not 4"),
        (["--for.dino.optim.base-lr", "1"], "dino was trained with other settings here"),
    ):
        assert main([*words, *change]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert says in line
    assert (made.output / "comparison.json").read_text() == before
    assert json.loads(before)["objectives"]["mae"]["network"] == "student"
