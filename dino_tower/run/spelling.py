"""RUN, RUN@student and RUN@teacher: how a run and one of its two networks are spelled. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from dino_tower.errors import unknown

NETWORKS = ("student", "teacher")


def run_and_network(what: str) -> tuple[Path | None, str]:
    """The run directory of RUN or RUN@NETWORK, and the network as it was typed ("" without one); None for no run.

    A path may have an @ of its own, as home folders have on machines that sign people in by mail address.
    """
    for root, who in ((what, ""), what.rpartition("@")[::2]):
        if root and ((Path(root) / "checkpoints").is_dir() or (Path(root) / "config.yaml").is_file()):
            return Path(root), who
    return None, ""


def network_of(who: str, name: str) -> str:
    """ "student" (also for "") or "teacher". Raises ConfigError, naming `name`, for anything else."""
    if who not in ("", *NETWORKS):
        raise unknown("network of a run", who, NETWORKS, name)
    return who or "student"
