"""Loader workers come alive whatever the main process did before it made them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image


def test_workers_survive_threads_that_opencv_left_in_the_parent(tmp_path: Path) -> None:
    """A picture blurred in the main process made OpenCV start threads; forked workers then hung in its thread pool."""
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    code = (
        "import sys, cv2, numpy as np\n"
        "from dino_tower.sources import open_source, read_batches\n"
        "cv2.setNumThreads(4)\n"
        "cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 9)\n"
        "source = open_source(sys.argv[1])\n"
        "batches = read_batches(source, np.asarray, batch_size=2, workers=2, start_method='fork')\n"
        "print(sum(len(batch.items) for batch in batches))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "4", done.stderr[-2000:]
