"""A run directory is read in whatever state its process left it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dino_tower.errors import ConfigError
from dino_tower.run.log import number, points, read_run, run_pictures, setting


def write(folder: Path, *rows: dict | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows]
    (folder / "log.jsonl").write_text("".join(lines))
    return folder


def step(at: int, loss: float = 1.0, **more: object) -> dict:
    return {"kind": "step", "step": at, "loss": loss, **more}


def test_a_resume_undoes_what_lay_beyond_its_checkpoint(tmp_path: Path) -> None:
    alarm = {"kind": "alarm", "step": 30, "name": "collapse-to-uniform", "message": "raise it"}
    run = read_run(
        write(tmp_path, {"kind": "start", "step": 0}, step(10), step(20), step(30, 9.0), alarm,
              {"kind": "start", "step": 20}, step(30, 3.0))
    )  # fmt: skip
    assert [(row["step"], row["loss"]) for row in run.steps] == [(10, 1.0), (20, 1.0), (30, 3.0)]
    assert run.alarms == []
    assert len(run.starts) == 2
    assert run.last_step == 30


def test_a_repeated_step_counts_once_even_without_a_start_row(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, step(10), step(20, 2.0), step(20, 5.0), step(10, 7.0)))
    assert [(row["step"], row["loss"]) for row in run.steps] == [(10, 7.0), (20, 5.0)]


def test_a_run_that_went_back_by_itself(tmp_path: Path) -> None:
    bad = {"kind": "bad_step", "step": 25, "loss": "nan"}
    back = {"kind": "rollback", "step": 10, "reason": "x"}
    run = read_run(write(tmp_path, step(10), step(20), bad, bad, back, step(20, 4.0), {"kind": "end", "step": 20}))
    assert [row["loss"] for row in run.steps] == [1.0, 4.0]
    assert (len(run.rollbacks), run.bad_steps, run.ended) == (1, 2, True)


def test_an_end_does_not_outlast_a_later_start(tmp_path: Path) -> None:
    end = {"kind": "end", "step": 10}
    assert read_run(write(tmp_path, step(10), end)).ended
    assert not read_run(write(tmp_path, step(10), end, {"kind": "start", "step": 10}, step(20))).ended


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, step(10), "\n", "[1, 2]\n", '{"kind":"step","step":"x"}\n', '{"kind":"step","st'))
    assert [row["step"] for row in run.steps] == [10]
    assert run.broken_lines == 3


def test_bytes_that_are_no_text_do_not_hide_the_rest(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b"\xff\x00\xfe\n" + json.dumps(step(10)).encode() + b"\n")
    run = read_run(tmp_path)
    assert (run.last_step, run.broken_lines) == (10, 1)


def test_time_between_an_interruption_and_its_resume_does_not_count(tmp_path: Path) -> None:
    run = read_run(
        write(tmp_path, {"kind": "start", "step": 0, "time": 100.0}, step(10, time=160.0),
              {"kind": "start", "step": 10, "time": 9000.0}, step(20, time=9030.0))
    )  # fmt: skip
    assert run.seconds == pytest.approx(90)


def test_settings_come_from_the_log_where_config_yaml_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, {"kind": "start", "step": 0, "steps": 500, "resolved": {"arch": "vits16"}})
    assert read_run(tmp_path).settings == {"arch": "vits16"}
    (tmp_path / "config.yaml").write_text("arch: [vit")
    assert read_run(tmp_path).settings == {"arch": "vits16"}
    (tmp_path / "config.yaml").write_text("arch: vitb16\nhead: {prototypes: 64}\n")
    run = read_run(tmp_path)
    assert run.settings["arch"] == "vitb16"
    assert run.total_steps == 500
    assert setting(run.settings, "head.prototypes", int) == setting(run.settings, "prototypes", int) == 64
    assert setting(run.settings, "arch.name") is None
    assert setting(run.settings, "arch", int) is None


def test_a_run_that_has_only_just_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("arch: vits16\n")
    run = read_run(tmp_path)
    assert (run.last_step, run.total_steps, run.steps, run.ended) == (0, None, [], False)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither config\.yaml nor log\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match="no run directory"):
        read_run(tmp_path / "absent")


def test_values_that_are_no_numbers_leave_a_gap() -> None:
    rows = [
        step(10, float("nan")),
        step(20, 2.0),
        {"step": 30, "loss": None},
        {"step": 40},
        {"step": 50, "loss": "nan"},
    ]
    assert points(rows, "loss") == [(20, 2.0)]
    assert [number(value) for value in (True, float("inf"), 3)] == [None, None, 3.0]


def test_pictures_are_found_by_step_and_name(tmp_path: Path) -> None:
    for name in ("input-0", "step-200/pca-0", "step-1000/attention-0", "step-200/attention-11", "step-x/pca-0", "odd"):
        path = tmp_path / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    inputs, by_step = run_pictures(tmp_path)
    assert list(inputs) == [0]
    assert list(by_step) == [200, 1000]
    assert {name: list(images) for name, images in by_step[200].items()} == {"pca": [0], "attention": [11]}
    assert run_pictures(tmp_path / "absent") == ({}, {})
