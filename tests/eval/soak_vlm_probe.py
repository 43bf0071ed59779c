"""The VLM probe as it is run: the tower in the box above its untrained twin above the blind model. Twenty minutes."""

from __future__ import annotations

from pathlib import Path

from dino_tower.cli import main
from dino_tower.eval.report.merged import read_benchmarks
from dino_tower.eval.stats import compare, interval

TOWER = "builtin:scenes"


def test_trained_above_untrained_above_blind(tmp_path: Path) -> None:
    words = (
        f"eval {TOWER} --suite vlm-probe --data scenes:hard --floors random,constant --seeds 1 --layers last".split()
    )
    assert main([*words, "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]) == 0
    entries = read_benchmarks([tmp_path / "out"]).entries
    own, twin = (next(one for one in entries if one.tower == name) for name in (TOWER, f"random:{TOWER}"))
    for metric, parts in own.parts.items():
        print(metric, interval(parts), interval(twin.parts[metric]), compare(parts, twin.parts[metric]))
    assert compare(own.parts["accuracy"], twin.parts["accuracy"]).low > 0
    assert interval(twin.parts["gain"]).low > 0
    assert twin.seconds < 8 * 60  # the first tower's seconds hold the blind model's, which all towers share
