"""`make bench`: run every bench_*.py beside this file, print one table, write build/bench.json.

A bench file, run as a script, prints one JSON row a line: name, baseline, ours_ms, baseline_ms, ratio, low, high and
target. A ratio above 1 always means that ours is better; rows of memory or limits say so with `unit`. Each file runs in
a process of its own, one after the other, so that no file's threads or caches colour the next one's numbers.

    python tests/benchmarks/run.py            # all of them
    python tests/benchmarks/run.py crops      # bench_crops.py only
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE.parent.parent / "build" / "bench.json"
Row = dict[str, Any]
HEAD = ("measure", "against", "ours", "baseline", "ratio (spread)", "at least", "")


def main(names: list[str]) -> int:
    """Run the named files (all by default); 1 if one of them failed: the rows of the others are written all the same.

    A row below its target is marked, not an error: a slow machine is no bug.
    """
    files = sorted(HERE.glob("bench_*.py"))
    known = [file.stem.removeprefix("bench_") for file in files]
    if wrong := sorted(set(names) - set(known)):
        print(f"no benchmark {', '.join(wrong)}; choices: {', '.join(known)}", file=sys.stderr)
        return 2
    rows, failed = [], []
    for file, name in zip(files, known, strict=True):
        if names and name not in names:
            continue
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(file)], stdout=subprocess.PIPE, text=True, check=False)
        rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        failed += [name] if done.returncode else []
        print(f"{name}: {time.perf_counter() - start:.0f} s, exit code {done.returncode}", file=sys.stderr, flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"written to {RESULT.relative_to(HERE.parent.parent)}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def table(rows: list[Row]) -> str:
    """The rows as aligned columns; a ratio below its target is marked."""
    cells = [HEAD]
    for row in rows:
        unit, target = row.get("unit", "ms"), row.get("target")
        cells.append(
            (
                str(row["name"]),
                str(row["baseline"]),
                f"{row['ours_ms']:g} {unit}",
                f"{row['baseline_ms']:g} {unit}",
                f"{row['ratio']:.2f} ({row['low']:.2f}..{row['high']:.2f})",
                "" if target is None else f"{target:g}",
                "below" if target is not None and row["ratio"] < target else "",
            )
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEAD))]
    return "\n".join("  ".join(f"{word:<{w}}" for word, w in zip(line, widths, strict=True)).rstrip() for line in cells)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
