"""The benchmark as one self-contained page: `write_report`."""

from __future__ import annotations

from dino_tower.eval.report.page import write_report

__all__ = ["write_report"]
