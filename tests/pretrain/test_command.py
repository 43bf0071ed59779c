"""What `dino-tower pretrain` answers without waiting for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "words",
    [
        ["--optim.base-lrr", "1"],
        ["--preset", "dino_vits"],
        ["--crops.back-end", "quick"],
        ["--batch-size", "0"],
    ],
)
def test_a_mistake_in_the_settings_is_told_before_torch_loads(words: list[str]) -> None:
    """It took six seconds on two cores, for a misspelt word."""
    code = (
        "import sys; from dino_tower.cli import main\n"
        "code = main(['pretrain', '--data', 'a', '--output', 'b', *sys.argv[1:]])\n"
        "print(code, [name for name in ('torch', 'transformers', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n" and done.stderr.count("\n") == 1
