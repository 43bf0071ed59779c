"""2,000 photos of which 5 % are damaged in ten ways; memory over 3,000 steps; a list of ten million rows.

About 5 minutes on two free cores: 1, 2 and 2. The short forms are in test_skipped.py, test_data.py and
tests/dino_tower/test_sources_strings.py.
"""

from __future__ import annotations

import json
import runpy
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

LIST_ROWS = 10_000_000
READ = """
import re, sys, time
from dino_tower.sources import open_source
start, processor = time.perf_counter(), time.process_time()
source = open_source(sys.argv[1])
wall, processor = time.perf_counter() - start, time.process_time() - processor
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
print(len(source), wall, processor, peak, source[1234].id, source[len(source) - 1].id)
"""


def test_two_thousand_photos_of_which_a_hundred_are_damaged(lives, tiny, write_photos, open_path: Path) -> None:
    short = runpy.run_path(str(Path(__file__).with_name("test_skipped.py")))
    listed = short["train_on_damaged"](lives, tiny, write_photos, open_path, 2000, 100)
    for reason, count in Counter(listed.values()).most_common():
        print(f"{count:4d}  {reason}")
    assert len(listed) == 100


def memory(process: psutil.Process) -> float:
    """MiB that a process and its workers hold, what they share counted once (Pss).

    Without pages of files: those of torch's libraries are divided among all programs of the machine that use torch, and
    the share grows when another one ends.
    """
    total = 0
    for one in [process, *process.children(recursive=True)]:
        rows = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(row.split()[1]) for row in rows if row.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total / 1024


def steps_done(run: Path) -> int:
    """The newest step in the log."""
    path = run / "log.jsonl"
    lines = path.read_text().splitlines()[-5:] if path.exists() else []
    return max([0] + [json.loads(line)["step"] for line in lines if line.endswith("}") and '"kind": "step"' in line])


def test_memory_of_the_processes_between_step_300_and_3000(tiny, write_photos, tmp_path: Path) -> None:
    photos, run = write_photos(tmp_path / "photos", 400), tmp_path / "run"
    words = ["--steps", "3100", "--data", str(photos), "--workers", "2", "--checkpoint-every", "100"]
    words += ["--batch-size", "2", "--crops.locals", "0", "--model.depth", "1"]  # steps are cheap, and many
    # looks are cheap, so that some come before step 300: the first one beside workers takes its memory for good
    words += ["--monitor.minutes", "0.03", "--monitor.knn-images", "40", "--monitor.pictures", "1"]
    words += ["--monitor.log-every", "10"]
    command = [sys.executable, "-m", "dino_tower.pretrain", *tiny(*words), "--output", str(run)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples: dict[int, list[float]] = {}
    while process.poll() is None:
        try:
            samples.setdefault(steps_done(run) // 100 * 100, []).append(memory(process))
        except (psutil.NoSuchProcess, OSError):
            continue  # a process that ended while it was looked at
        time.sleep(0.25)
    assert process.returncode == 0
    median = {step: statistics.median(values) for step, values in samples.items()}
    print("MiB by step:", {step: round(value, 1) for step, value in sorted(median.items())})
    growth = median[3000] / median[300] - 1
    print(f"growth between step 300 and step 3000: {growth:+.2%}")
    assert growth < 0.01


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_ten_million_rows(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    ends = [f",class_{i:03d}\n" if kind == "csv" else "\n" for i in range(1000)]
    with path.open("w") as file:
        file.write("path,label\n" if kind == "csv" else "")
        for start in range(0, LIST_ROWS, 1000):
            rows = range(start, start + 1000)
            file.writelines(f"images/part-{i % 1000:04d}/photograph_{i:010d}.jpg{ends[i % 1000]}" for i in rows)
    ran = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    count, wall, processor, peak, early, last = ran.stdout.split()
    times = f"{float(wall):.1f} s, {float(processor):.1f} s of processor time"
    print(f"{kind}: {path.stat().st_size / 1e6:.0f} MB, {times}, {float(peak):.2f} GiB at its peak")
    # one thread reads: on a free machine that is the time on the clock, and here others may work as well
    assert int(count) == LIST_ROWS and float(processor) < 60 and float(peak) * 2**30 < 1.5e9
    assert early == "images/part-0234/photograph_0000001234.jpg" and last.endswith("photograph_0009999999.jpg")
