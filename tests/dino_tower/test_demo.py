"""The demo trains, compares and says what it found: also when it found nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from dino_tower import cli
from dino_tower.attention import Jaccard
from dino_tower.demo import KS, PIXELS, TRAINED, UNTRAINED, Found, raw_pixels, report


def found(trained: float, untrained: float, pixels: float, overlap: float = 0.1, scenes: int = 400) -> dict[str, Found]:
    """Results in which the first share of the scenes is right, and attention overlap is `overlap` or 0.2."""

    def right(share: float) -> dict[int, np.ndarray]:
        return {k: np.arange(scenes) < share * scenes for k in KS}

    def looks(value: float) -> list[Jaccard]:
        return [Jaccard(value, value / 2, value / 4)] * scenes

    return {
        TRAINED: Found(right(trained), looks(overlap)),
        UNTRAINED: Found(right(untrained), looks(0.2)),
        PIXELS: Found(right(pixels), []),
    }


def row(text: str, name: str) -> list[float]:
    """The numbers of the first table row that starts with `name`."""
    (line, *_) = [line for line in text.splitlines() if line.strip().startswith(name)]
    return [float(word) for word in re.findall(r"[-+]?\d+\.\d", line.strip().removeprefix(name))]


def test_the_table_holds_the_shares_and_their_differences() -> None:
    text, numbers = report(found(0.75, 0.25, 0.5))
    assert row(text, "trained  ") == [75.0, 75.0, 75.0]
    assert row(text, "raw 16x16 pixels  ") == [50.0, 50.0, 50.0]
    difference, low, high = row(text, "trained - random init")[:3]
    assert difference == 50.0 and 44 < low < 48 and 52 < high < 56  # standard error: 2.5
    assert numbers["knn"][TRAINED] == {5: 0.75, 10: 0.75, 20: 0.75}
    assert numbers["attention_iou"][UNTRAINED] == pytest.approx(
        {"best_head": 0.2, "mean_head": 0.1, "head_average": 0.05}
    )
    json.dumps(numbers, allow_nan=False)


def test_the_verdict_says_it_either_way() -> None:
    good, _ = report(found(0.75, 0.25, 0.5, overlap=0.3))
    assert "trained beats random init at every k" in good
    assert "trained beats raw 16x16 pixels at every k" in good
    assert "trained is above random init (+10.0)" in good
    bad, _ = report(found(0.25, 0.5, 0.25, overlap=0.1))
    assert "trained does not beat random init" in bad
    assert "trained does not beat raw 16x16 pixels" in bad
    assert "trained is below random init (-10.0)" in bad


def test_too_few_scenes_have_no_interval() -> None:
    text, numbers = report(found(0.75, 0.25, 0.5, scenes=8))
    assert "(n/a to n/a)" in text and "does not beat" in text
    json.dumps(numbers, allow_nan=False)


def test_raw_pixels_are_the_small_picture() -> None:
    image = PIL.Image.new("RGB", (96, 96), (255, 0, 51))
    assert raw_pixels([image, image]).shape == (2, 768)
    assert raw_pixels([image])[0].unflatten(0, (16, 16, 3))[7, 3].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_a_short_demo_leaves_the_run_the_numbers_and_the_pictures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    new_process: Callable[[], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    new_process()
    assert cli.main(["demo", "--steps", "2", "--scenes", "30"]) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "runs" / "demo"
    for name in ("report.html", "demo.png", "demo.json"):
        assert (run / name).stat().st_size > 0
    for name in ("report.html", "demo.png"):
        assert str(Path("runs") / "demo" / name) in printed
    numbers = json.loads((run / "demo.json").read_text(encoding="utf-8"))
    assert numbers["scenes"] == 30
    assert row(printed, "trained  ") == [pytest.approx(100 * numbers["knn"][TRAINED][str(k)], abs=0.051) for k in KS]
    for name in (TRAINED, UNTRAINED):
        assert all(0 < value < 1 for value in numbers["attention_iou"][name].values())


def test_a_second_demo_takes_the_next_free_folder(tmp_path: Path) -> None:
    from dino_tower.demo import _free

    assert _free(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert _free(tmp_path / "demo") == tmp_path / "demo-3"


@pytest.mark.parametrize("words", [["--steps", "0"], ["--scenes", "-3"], ["--steps", "two"]])
def test_a_wrong_number_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words[0] in line and words[1] in line
