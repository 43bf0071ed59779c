"""The numbers that tell a healthy run from a dead one, and the normalisation of its pixels."""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from PIL import Image

from dino_tower import load_tower
from dino_tower.pretrain.loading.pixels import Normalise
from dino_tower.pretrain.monitor import Falling, rankme
from dino_tower.pretrain.objectives.dino import Dino, sharpness
from dino_tower.pretrain.settings import Config, HeadConfig


def test_health_of_a_uniform_and_of_a_one_sided_teacher() -> None:
    uniform = torch.full((2, 3, 8), 1 / 8)
    row = sharpness(uniform)
    assert abs(row["entropy"] - math.log(8)) < 1e-6 and abs(row["prototypes_used"] - 8) < 1e-4
    one = torch.zeros(2, 3, 8)
    one[..., 5] = 1
    row = sharpness(one)
    assert row["entropy"] == 0 and abs(row["prototypes_used"] - 1) < 1e-6
    config = Config(head=HeadConfig(prototypes=8))
    assert Dino(config).health(one, torch.tensor(2.0)) == {**row, "kl": 2, "centre_norm": 0}
    spread = torch.eye(6, 8).view(2, 3, 8)  # sure of each image, and each image another prototype
    row = sharpness(spread)
    assert row["entropy"] == 0 and abs(row["prototypes_used"] - 6) < 1e-4


def test_rankme_counts_directions() -> None:
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 5, generator=g)).Q
    assert abs(rankme(torch.randn(4000, 5, generator=g) @ basis.T) - 5) < 0.1
    assert rankme(torch.ones(100, 8)) < 1.01


def test_pixels_are_normalised_as_a_processor_does(tmp_path) -> None:
    from dino_tower.images import processor_for

    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    ours = Normalise(mean, std, torch.device("cpu"))(torch.from_numpy(picture)[None])
    processor = processor_for(32, 8, mean, std)
    theirs = processor(Image.fromarray(picture), return_tensors="pt", do_resize=False).pixel_values
    assert (ours - theirs).abs().max() < 1e-6


def test_measured_colours_travel_to_the_processor(pretrain, tmp_path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.normal((60, 120, 180), (10, 20, 30), (40, 40, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    run = pretrain("run", "--data", str(folder), "--steps", "1", "--pixels.measure")
    processor = load_tower(run).processor
    assert np.allclose(processor.image_mean, np.array((60, 120, 180)) / 255, atol=0.01)
    assert np.allclose(processor.image_std, np.array((10, 20, 30)) / 255, atol=0.01)


def test_watching_does_not_change_the_run(pretrain) -> None:
    """k-NN, pictures and RankMe look at a copy of the teacher with random numbers of their own."""
    quiet = pretrain("quiet", "--steps", "2", "--model.drop-path", "0.2")
    watched = pretrain(
        "watched", "--steps", "2", "--model.drop-path", "0.2", "--monitor.minutes", "1e-9", "--monitor.knn-images", "30"
    )
    for part in ("student/model", "teacher/model", "heads", "optimizer"):
        a, b = ((run / f"checkpoints/step-2/{part}.safetensors").read_bytes() for run in (quiet, watched))
        assert a == b, part
    rows = [json.loads(line) for line in (watched / "log.jsonl").read_text().splitlines()]
    looks = [row for row in rows if row["kind"] == "monitor"]
    assert looks and all(set(row["knn"]) == {"5", "10", "20"} and row["rankme"] > 1 for row in looks)
    assert looks[0]["knn"] == looks[0]["random_knn"]


def test_a_fall_of_knn_is_said_once_when_it_lasts() -> None:
    falling = Falling()
    said = [falling.update({"10": value}) for value in (0.5, 0.6, 0.55, 0.59, 0.55, 0.54, 0.4, 0.6, 0.5, 0.5)]
    assert [number for number, message in enumerate(said) if message] == [5, 9]
    assert "10-NN of the teacher fell from 60.0% to 54.0%" in said[5]


def test_a_fall_below_the_weights_of_the_start_is_said_at_once() -> None:
    """A careless setting wrecks features in some hundred steps, between two looks."""
    falling = Falling(of_weights=True)
    said = [falling.update({"10": value}) for value in (0.5, 0.48, 0.46, 0.4, 0.5, 0.46, 0.7, 0.6, 0.6, 0.4)]
    assert [number for number, message in enumerate(said) if message] == [2, 5, 8, 9]
    assert "10-NN of the teacher fell below the weights it started from, 50.0%, to 46.0%" in said[2]
    assert "fell from 70.0% to 60.0%" in said[8]


def test_the_alarm_of_a_fall_reaches_log_and_terminal_and_outlives_a_resume(pretrain, capsys, monkeypatch) -> None:
    """The start that a fall is measured from is the first look's, also after an interruption."""
    import shutil

    from dino_tower.pretrain import monitor

    # the untrained twin, then teacher and student before the first step and at the end
    accuracy = iter([0.1, 0.6, 0.6, 0.6, 0.6])
    monkeypatch.setattr(monitor, "knn_accuracy", lambda *args, k, **kwargs: dict.fromkeys(k, next(accuracy)))
    first = pretrain("first", "--steps", "1")
    flags = (
        "--init-from",
        str(first),
        "--checkpoint-every",
        "1",
        "--monitor.minutes",
        "99",
        "--monitor.knn-images",
        "40",
    )
    run = pretrain("run", *flags, "--steps", "2")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if row["kind"] == "monitor"] == [0, 2]
    assert "ALARM" not in "".join(capsys.readouterr())
    shutil.rmtree(run / "checkpoints/step-2")
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log if row["step"] < 2))
    accuracy = iter([0.1, 0.5, 0.6])
    pretrain("run", *flags, "--steps", "2", "--resume")
    alarms = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"alarm"' in line]
    line = "fell below the weights it started from, 60.0%, to 50.0%"
    assert [alarm["name"] for alarm in alarms] == ["knn-falls"] and line in alarms[0]["message"]
    assert f"ALARM knn-falls: 10-NN of the teacher {line}" in "".join(capsys.readouterr())


def test_a_student_that_falls_is_told_before_its_teacher_follows(pretrain, capsys) -> None:
    """The alarm looked at the teacher alone: with a slow one, what is exported was ruined hundreds of steps before."""
    first = pretrain("first", "--steps", "1")
    run = pretrain(
        "run", "--init-from", str(first), "--steps", "4", "--monitor.minutes", "99", "--monitor.knn-images", "60",
        "--optim.base-lr", "1e4", "--optim.clip", "0", "--teacher.momentum", "1", "--optim.warmup-epochs", "0",
    )  # fmt: skip
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    start, end = (row for row in log if row["kind"] == "monitor")
    assert start["student_knn"] == start["knn"] == end["knn"] != end["student_knn"]
    (alarm,) = (row for row in log if row["kind"] == "alarm" and row["name"] == "knn-falls")
    assert "10-NN of the student fell below the weights it started from" in alarm["message"]


def test_data_without_labels_has_a_rank_too(pretrain, write_photos, tmp_path) -> None:
    """RankMe asks nobody for labels, and was measured with them alone."""
    photos = write_photos(tmp_path / "photos", 24)
    run = pretrain("run", "--data", str(photos), "--steps", "1", "--monitor.minutes", "99")
    looks = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"monitor"' in line]
    assert looks and all(row["rankme"] > 1 and "knn" not in row for row in looks if row["kind"] == "monitor")
