"""What cannot be compared is one line that names it and says what to do, exit code 2, before anything is trained."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino_tower.cli import main

# what is wrong, words over --objectives dino --data scenes --steps 2 --output out, what the line says
REFUSED = [
    ("an objective misspelt", "--objectives dino,ibott", "--objectives: no objective 'ibott'; did you mean 'ibot'?"),
    ("an objective twice", "--objectives dino,ibot,dino", "--objectives: 'dino' is given twice"),
    ("the control among them", "--objectives dino,random", "random init is always compared with; leave it out"),
    ("no seed", "--seeds 0", "--seeds 0; it must be 1 or more"),
    ("no step", "--steps 0", "--steps 0; it must be 1 or more"),
    ("two budgets", "--minutes 5", "give one of --steps N (equal steps), --minutes M"),
    ("operations that are none", "--tflops 0", "give one of --steps N (equal steps)"),
    ("looks below none", "--looks -1", "--looks -1; it must be 0 or more"),
    ("a word for a number", "--seeds two", "argument --seeds: invalid int value: 'two'"),
    ("an unknown option", "--sedes 2", "unrecognized arguments: --sedes 2"),
    ("an output that is a file", "--output file.txt", "--output file.txt is a file; name a directory"),
    ("an output of something else", "--output photos", "--output photos holds something that is no comparison"),
    ("a seed of its own", "--pretrain.seed 3", "--pretrain.seed is not yours to set: use --seeds"),
    ("a length of its own", "-- --steps 3", "--pretrain.steps is not yours to set: use --steps,"),
    ("another start", "--for.dino.init-from photos", "init-from is not yours to set: objectives are compared from the"),
    ("another place for scores", "--eval.output there", "--eval.output is not yours to set: use --output"),
    ("a setting misspelt", "--pretrain.optim.bas-lr 1", "dino: command line: no setting '--optim.bas-lr'; did you"),
    ("a setting of nobody", "--for.mae.mae.ratio 0.5", "--for.mae: no objective 'mae'; choices: dino"),
    ("an unknown share", "--own crop", "--own: no group of settings 'crop'; did you mean 'crops'?"),
    ("a preset misspelt", "--preset dino_cpuu", "no preset 'dino_cpuu'; did you mean 'dino_cpu'?"),
    ("recipes misspelt", "--recipes cpuu", "no end of presets' names 'cpuu'; did you mean 'cpu'?"),
    ("data that is not there", "--data nowhere", "nowhere"),
    ("a task misspelt", "--eval.suite knnn", "--suite: no task or suite 'knnn'; did you mean 'knn'?"),
    ("an option of eval misspelt", "--eval.tokns 4", "unrecognized arguments: --tokns 4"),
    ("a grid of nothing", "--eval.tokens 0", "--tokens 0; it must be 1 or more"),
    ("tasks that the data does not allow", "--eval.suite depth", "the data allows none of the tasks asked for (depth)"),
    ("looks that the data does not allow", "--look-suite depth", "the data allows none of the tasks asked for (depth)"),
    ("data without a test part", "--data photos", "--eval SOURCE is missing: 'photos' keeps no test part apart"),
    ("data that eval cannot read", "--data list.csv", "--eval SOURCE is missing, and the data cannot be judged on"),
    ("CLIP without captions", "--objectives clip --data photos --eval scenes", "clip: "),
    ("labels that are not there", "--objectives supervised --data flat --eval scenes", "supervised: "),
    ("distillation from nobody", "--objectives distil", "distil: terms.distil: --distil.teachers TOWER"),
    ("masks without a mask token", "--objectives dino,ibot --pretrain.arch vits8_siglip", "ibot: terms.ibot needs a"),
    ("a batch larger than the data", "--data photos --eval scenes", "fewer than one global batch of 64"),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos/ (two classes), flat/ (no labels), list.csv and file.txt."""
    for i in range(24):
        for folder in (tmp_path / "photos" / "ab"[i % 2], tmp_path / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (48, 40), (10 * i, 90, 30)).save(folder / f"{i}.png")
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"flat/{i}.png\n" for i in range(24)))
    (tmp_path / "file.txt").write_text("not a directory\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_it_is_one_line_and_nothing_is_written(words: str, says: str, here: Path, capfd: Any) -> None:
    before = sorted(here.rglob("*"))
    given = shlex.split(words)
    start = {"--objectives": "dino", "--data": "scenes", "--steps": "2", "--output": "out"}
    ours = [word for flag, value in start.items() if flag not in given or "--" in given for word in (flag, value)]
    if "supervised" in given or "clip" in given:
        ours += ["--pretrain.batch-size", "2"]
    assert main(["compare-objectives", *ours, *given]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dino-tower: ") and says in line
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("missing", ["--objectives", "--data", "--steps", "--output"])
def test_what_is_missing_is_named(missing: str, here: Path, capfd: Any) -> None:
    given = {"--objectives": "dino", "--data": "scenes", "--steps": "2", "--output": "out"}
    words = [word for flag, value in given.items() if flag != missing for word in (flag, value)]
    assert main(["compare-objectives", *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert missing in line


def test_help_lists_every_option(capsys: Any) -> None:
    assert main(["compare-objectives", "--help"]) == 0
    said = capsys.readouterr().out
    for flag in ("--objectives", "--data", "--steps", "--minutes", "--seeds", "--eval", "--looks", "--own", "--for."):
        assert flag in said
