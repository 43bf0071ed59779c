"""`dino-tower pretrain` up to the point where torch is needed: loading it takes seconds, a mistake is told before."""

from __future__ import annotations

from collections.abc import Sequence

from dino_tower.pretrain.config import read_config


def main(argv: Sequence[str]) -> int:
    """Check the settings, then train; returns the exit code. Raises ConfigError for settings that cannot be used."""
    if not {"-h", "--help"} & set(argv):
        read_config(argv)
    from dino_tower.pretrain.train import main as pretrain

    return pretrain(argv)
