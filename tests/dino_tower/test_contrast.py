"""Contrast in half precision. Against the published losses, and over processes: tests/adapters/test_text.py."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dino_tower.contrast import LOSSES, contrast


@pytest.mark.parametrize("kind", LOSSES)
def test_half_precision_does_not_reach_the_logits(kind: str) -> None:
    """bfloat16 knows a cosine of 0.9 to 0.002, which a scale of 100 makes 0.2 of a logit."""
    g = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(16, 8, generator=g), dim=-1) for _ in range(2))
    asked = (kind, image, text, torch.tensor(100.0), torch.tensor(0.0), torch.eye(16, dtype=torch.bool))
    with torch.autocast("cpu", torch.bfloat16):
        half = contrast(*asked)
    assert half.dtype == torch.float32 and torch.equal(half, contrast(*asked))
