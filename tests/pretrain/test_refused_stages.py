"""What a later stage, a head to learn from, Gram anchoring and DINOv3's settings cannot be: one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_tower.cli import main

HEAD = "--objective distil_head --distil.teachers"
GRAM = "--terms.gram 2 --gram.tower self"
CASES = [
    ("a stage from nothing", "--stage hires", "stage hires goes on from weights: --init-from RUN"),
    ("a stage misspelt", "--stage high", "stage: no choice 'high'"),
    (
        "a stage at no higher resolution",
        "--stage hires --init-from RUN --crops.global-size 32",
        "stage hires: crops.global_size is 32, and RUN was trained at 32: give more",
    ),
    (
        "a stage of another class",
        "--stage hires --init-from RUN --crops.global-size 48 --arch vits8_reg4",
        "not a Dinov2WithRegistersModel of this shape",
    ),
    ("a network that a run has not", "--init-from RUN@pupil", "RUN@pupil: no network of a run 'pupil'"),
    ("a run without a checkpoint", "--init-from EMPTY", "EMPTY: the run has no checkpoint yet"),
    (
        "heads of another size",
        "--init-from RUN --head.prototypes 32",
        "(64, 1) and the new run (32, 1): give the head the sizes that it had, or start with new ones",
    ),
    ("a head that is not named", "--objective distil_head", "0 distil.teachers; one RUN is needed, whose head"),
    ("two heads", f"{HEAD} a b", "2 distil.teachers; one RUN is needed, whose head"),
    ("a tower without a head", f"{HEAD} RUN/checkpoints/step-1/student", "has no head: terms.distil_head needs a run"),
    (
        "a head of another size",
        f"{HEAD} RUN --head.prototypes 32",
        "head.prototypes is 32 and the head of RUN has 64: set --head.prototypes 64",
    ),
    (
        "masks and a head",
        "--objective ibot --terms.distil-head 1 --distil.teachers RUN",
        "terms.distil_head and terms.ibot do not go together: the student has to see the patches",
    ),
    ("a negative weight of patches", f"{HEAD} RUN --distil.patches -1", "distil.patches is -1.0; give 0 or more"),
    ("an anchor after the end", f"{GRAM} --gram.start 1", "gram.start is 1.0; give a share of the run"),
    ("an anchor renewed backwards", f"{GRAM} --gram.refresh -1", "gram.refresh is -1 and gram.refreshes 3; give 0"),
    (
        "an anchor of another class",
        "--terms.gram 2 --gram.tower RUN --gram.refresh 1 --arch vits8_reg4",
        "not a Dinov2WithRegistersModel of this shape",
    ),
    ("a gain that is not there", "--head.weight-norm false", "head.norm_last_layer keeps a gain at 1 that there is"),
    (
        "positions without a scale",
        "--model.rope-rescale 2",
        "model.rope_rescale is 2.0 with arch vitt8: it is a number of 1 or more, for a class with rotary positions",
    ),
    ("a scale of nothing", "--arch vits8_rope --model.rope-rescale 0", "model.rope_rescale is 0.0; it must be above 0"),
    ("an unknown schedule", "--optim.schedule linear", "optim.schedule: no choice 'linear'; did you mean 'cosine'?"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny) -> Path:
    """RUN: one step of DINO, in a folder with EMPTY: a run that was stopped before its first checkpoint."""
    from accelerate.state import AcceleratorState, GradientState

    folder = tmp_path_factory.mktemp("stages")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert main(["pretrain", *tiny("--steps", "1"), "--output", str(folder / "RUN")]) == 0
    (folder / "EMPTY").mkdir()
    (folder / "EMPTY" / "config.yaml").write_text((folder / "RUN" / "config.yaml").read_text())
    return folder


@pytest.mark.parametrize(("case", "flags", "says"), CASES, ids=[case[0] for case in CASES])
def test_one_line_and_nothing_written(
    case: str, flags: str, says: str, run: Path, tiny, monkeypatch, capsys, new_process
) -> None:
    new_process()
    monkeypatch.chdir(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["pretrain", *tiny(*flags.split()), "--output", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dino-tower: ") and says in line and len(line) < 600
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
