"""What a benchmark refuses in one line with exit code 2, and what it reports as n/a beside scores that stand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower import load_tower
from dino_tower.cli import main
from dino_tower.eval.results import read_results
from dino_tower.eval.suite import tasks_of
from dino_tower.eval.tasks import SUITES

TOWER = "builtin:scenes"
SMALL = ["--tokens", "4", "--pixels", "32", "--seeds", "1", "--layers", "last", "--floors", "none"]


def photo(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> None:
    """A file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def class_folders(root: Path, each: int = 3, names: str = "cats dogs") -> Path:
    """A folder a class in train and test."""
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(names.split()):
            for i in range(each):
                photo(root / split / name / f"{i}.png", 100 * s + 10 * c + i)
    return root


def with_masks(root: Path, each: int = 4) -> Path:
    """Pictures with masks of two classes, train and val."""
    for s, split in enumerate(("train", "val")):
        for i in range(each):
            photo(root / "images" / split / f"{i}.png", 50 * s + i)
            mask = np.zeros((32, 40), np.uint8)
            mask[8:24, 10:30] = 1
            path = root / "masks" / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    (root / "classes.txt").write_text("ground\nthing\n")
    return root


def run(folder: Path, *words: str) -> int:
    """The command with its own cache and output unless `words` name one."""
    rest = [] if "--output" in words else ["--output", str(folder / "out")]
    rest += [] if "--cache" in words else ["--cache", str(folder / "cache")]
    return main(["eval", *words, *rest, *SMALL])


KNN = ["--data", "scenes", "--suite", "knn", "--limit", "8"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "no data": ([TOWER], "no data given; add --data SOURCE"),
    "tower not there": (["towr/x", *KNN], "towr/x"),
    "last tower misspelt": ([TOWER, "builtin:scene", *KNN], "did you mean 'builtin:scenes'"),
    "last tower of timm misspelt": ([TOWER, "timm:vit_tinny_patch16_224", *KNN], "did you mean vit_tiny_patch16_224"),
    "tower misspelt": (["builtin:scene", *KNN], "did you mean 'builtin:scenes'"),
    "suite": ([TOWER, "--data", "scenes", "--suite", "quik"], "no task or suite 'quik'; did you mean 'quick'"),
    "task among good ones": ([TOWER, "--data", "scenes", "--suite", "knn,deph"], "did you mean 'depth'"),
    "column": ([TOWER, "--data", "scenes", "--columns", "token"], "no column 'token'; did you mean 'tokens'"),
    "no column": ([TOWER, "--data", "scenes", "--columns", "none"], "name one or both of tokens, pixels"),
    "floor": ([TOWER, "--data", "scenes", "--floors", "raw,rand"], "no floor 'rand'; did you mean"),
    "layers": ([TOWER, "--data", "scenes", "--layers", "first"], "no layers 'first'"),
    "kept precision": ([TOWER, "--data", "scenes", "--feature-dtype", "fp16"], "did you mean 'float16'"),
    "precision": ([TOWER, *KNN, "--dtype", "half"], "no dtype 'half'"),
    "device": ([TOWER, *KNN, "--device", "cuba"], "device 'cuba' cannot be used"),
    "tokens": ([TOWER, "--data", "scenes", "--tokens", "0"], "--tokens 0; it must be 1 or more"),
    "tokens in words": ([TOWER, "--data", "scenes", "--tokens", "many"], "invalid int value: 'many'"),
    "seeds": ([TOWER, "--data", "scenes", "--seeds", "0"], "--seeds 0; it must be 1 or more"),
    "limit": ([TOWER, "--data", "scenes", "--limit", "1"], "--limit 1; it must be 2 or more"),
    "cache limit": ([TOWER, *KNN, "--cache-limit", "0"], "--cache-limit 0.0"),
    "tower twice": ([TOWER, TOWER, "--data", "scenes"], "'builtin:scenes' is given twice"),
    "data twice": ([TOWER, "--data", "scenes", "--data", "scenes"], "'scenes' is given twice"),
    "reference": ([TOWER, "--data", "scenes", "--reference", "clip"], "no tower 'clip'"),
    "flag": ([TOWER, "--data", "scenes", "--suit", "knn"], "unrecognized arguments: --suit"),
    "data not there": ([TOWER, "--data", "fotos"], "'fotos' does not exist"),
    "level": ([TOWER, "--data", "scenes:esy"], "no level of scenes 'esy'; did you mean 'easy'"),
    "task the data lacks": ([TOWER, "--data", "scenes", "--suite", "depth"], "none of the tasks asked for (depth)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = MISTAKES[name]
    # the word given last counts, so that the mistake stands behind the small settings
    assert main(["eval", *SMALL, "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out" / "results.json").exists()
    if "tower" in name:  # the last one's typo was found when all others had been benchmarked
        assert not (tmp_path / "out").exists()


def test_suites_and_tasks_are_named_together_each_once() -> None:
    """ "quick,depth" was no suite ("did you mean 'quick'?"), and "knn,knn" ran twice and doubled the comparisons."""
    names = [task.name for task in tasks_of("quick,depth,knn")]
    assert names == [*SUITES["quick"], "depth"]
    assert [task.name for task in tasks_of("knn,knn")] == ["knn"]


def test_outputs_that_hold_something_else_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    assert run(tmp_path, TOWER, "--data", "scenes", "--output", str(tmp_path / "taken")) == 2
    assert "holds files that are no benchmark's" in capsys.readouterr().err
    assert run(tmp_path, TOWER, "--data", "scenes", "--output", str(tmp_path / "file")) == 2
    assert "is a file; give a directory" in capsys.readouterr().err
    assert run(tmp_path, TOWER, "--data", "scenes", "--cache", str(tmp_path / "file")) == 2
    assert "choose another with --cache" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "taken").iterdir()] == ["thesis.txt"]


def damage(root: Path, kind: str) -> None:
    """One thing wrong in a folder of masks."""
    mask = root / "masks" / "val" / "2.png"
    if kind == "another size":
        Image.fromarray(np.zeros((16, 20), np.uint8)).save(mask)
    elif kind == "class out of range":
        Image.fromarray(np.full((32, 40), 7, np.uint8)).save(mask)
    elif kind == "mask missing":
        mask.unlink()
    elif kind == "picture damaged":
        (root / "images" / "val" / "2.png").write_bytes(b"no picture")
    else:
        (root / "classes.txt").write_text("")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another size", "the mask is 20 x 16, the picture 40 x 32 pixels"),
        ("class out of range", "7"),
        ("mask missing", "1 of 4 images have no mask"),
        ("picture damaged", "2.png"),
        ("no classes", "classes.txt"),
    ],
)
def test_bad_masks_are_found_before_anything_is_computed(
    kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = with_masks(tmp_path / "data")
    damage(root, kind)
    assert run(tmp_path, TOWER, "--data", str(root), "--suite", "in-context") == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_broken_training_part_is_not_an_absent_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training mask was missing: the table said "no training part", and nothing named the file."""
    root = with_masks(tmp_path / "data")
    (root / "masks" / "train" / "2.png").unlink()
    assert run(tmp_path, TOWER, "--data", str(root), "--suite", "in-context") == 2
    assert "1 of 4 images have no mask" in (line := capsys.readouterr().err) and "first: 2" in line
    for kind in ("images", "masks"):
        shutil.rmtree(root / kind / "train")
    words = ["--data", str(root), "--suite", "in-context,health", "--cache", str(tmp_path / "cache")]
    words += ["--output", str(tmp_path / "out"), *SMALL, "--floors", "constant"]
    assert main(["eval", TOWER, *words]) == 0  # absent: what needs none is scored
    reasons = {row["task"]: row["reason"] for row in read_results(tmp_path / "out")["scores"]}
    assert "no training part" in reasons["in-context"] and not reasons["health"]


def test_one_class_allows_no_classification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "data")
    for split in ("train", "test"):
        shutil.rmtree(root / split / "dogs")
    assert run(tmp_path, TOWER, "--data", str(root), "--suite", "knn") == 2
    assert "no layout that is known" in capsys.readouterr().err


def test_a_folder_called_scenes_is_told_from_the_built_in_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was written to `scenes` made `--data scenes` an unknown layout, with no word of why."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes" / "checkpoints").mkdir(parents=True)
    assert run(tmp_path, TOWER, "--data", "scenes", "--suite", "knn", "--limit", "8") == 2
    assert "'scenes' is a folder here" in (line := capsys.readouterr().err) and "are scenes:easy" in line


def test_classes_that_a_limit_leaves_untaught_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """99 classes with --limit 32 gave numbers near 0 for every tower, and nothing said why."""
    root = class_folders(tmp_path / "data", names="ants bees cats dogs eels")
    for name in ("ants", "bees"):
        shutil.rmtree(root / "test" / name)  # four of nine test pictures are of cats, dogs, dogs, eels;
    assert run(tmp_path, TOWER, "--data", str(root), "--suite", "knn", "--limit", "4") == 0
    assert "1 of its classes have test pictures and, with --limit, no" in capsys.readouterr().out
    assert read_results(tmp_path / "out")["data"][0]["untaught"] == ["cats"]  # four of fifteen others of a, b, d, e
    assert "1 of its classes have test pictures and, with --limit, no" in (tmp_path / "out/report.html").read_text()


def test_fewer_pictures_than_neighbours_and_units_is_a_score_without_interval(tmp_path: Path) -> None:
    """Two training pictures for 20-NN, two to judge: a value, no interval, no p."""
    root = class_folders(tmp_path / "data", each=1)
    assert run(tmp_path, TOWER, "--data", str(root), "--suite", "knn") == 0
    for row in read_results(tmp_path / "out")["scores"]:
        assert row["score"]["value"] is not None and row["score"]["low"] is None and row["score"]["units"] == 2


def saved(tmp_path: Path, change: Any) -> str:
    """A copy of the built-in tower with something done to its model."""
    tower = load_tower(TOWER)
    change(tower.model)
    folder = tmp_path / "tower"
    tower.model.save_pretrained(folder)
    tower.processor.save_pretrained(folder)
    return str(folder)


def test_a_tower_whose_features_are_nan_is_na_and_the_others_stand(tmp_path: Path) -> None:
    def break_it(model: torch.nn.Module) -> None:
        next(iter(model.parameters())).data.fill_(float("nan"))

    root = class_folders(tmp_path / "data")
    broken = saved(tmp_path, break_it)
    assert run(tmp_path, TOWER, broken, "--data", str(root), "--suite", "knn") == 0
    rows = {row["tower"]: row for row in read_results(tmp_path / "out")["scores"] if row["metric"] == "10-nn"}
    assert rows[TOWER]["score"] is not None
    assert rows[broken]["score"] is None and "are not finite" in rows[broken]["reason"]


def test_a_picture_that_vanishes_is_na_and_what_was_finished_stands(
    tmp_path: Path,
) -> None:
    """The look at the start reads eight pictures of a split; another one may still be damaged."""
    root = class_folders(tmp_path / "data", each=12)
    (root / "test" / "cats" / "3.png").write_bytes(b"damaged")
    code = run(tmp_path, TOWER, "--data", str(root), "--data", "scenes", "--suite", "knn", "--limit", "24")
    assert code == 0
    by_data = {row["data"]: row for row in read_results(tmp_path / "out")["scores"] if row["metric"] == "10-nn"}
    assert by_data["scenes"]["score"] is not None
    assert "3.png" in by_data[str(root)]["reason"]


def test_a_tower_of_one_size_is_na_where_a_column_shows_another(tmp_path: Path) -> None:
    """The ViTs of torchvision take 224 x 224 only."""
    root = with_masks(tmp_path / "data")
    name = "random:torchvision:vit_b_32"
    assert run(tmp_path, name, "--data", str(root), "--suite", "in-context") == 0
    for row in read_results(tmp_path / "out")["scores"]:
        assert row["score"] is None and "takes 224 x 224 pixels only" in row["reason"]


def test_damaged_entries_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "data")
    words = [TOWER, "--data", str(root), "--suite", "knn"]
    assert run(tmp_path, *words) == 0
    [entry] = (tmp_path / "out" / "entries").glob("*.json")
    entry.write_text("{")
    capsys.readouterr()
    assert run(tmp_path, *words) == 2
    assert f"{entry}: damaged" in capsys.readouterr().err


def test_reports_of_what_is_no_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no results.json; give a directory that `dino-tower eval` wrote" in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps({"schema": "dino-tower/eval", "version": 9}))
    assert main(["report", str(tmp_path)]) == 2
    assert "version 9; this release reads" in capsys.readouterr().err


def test_benchmarks_on_unlike_pictures_do_not_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = class_folders(tmp_path / "data", each=6)
    for name, limit in (("a", "8"), ("b", "6")):
        tower = TOWER if name == "a" else "random:builtin:scenes"
        words = [tower, "--data", str(root), "--suite", "knn", "--limit", limit, "--output", str(tmp_path / name)]
        assert run(tmp_path, *words) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "were judged on unlike pictures" in capsys.readouterr().err
