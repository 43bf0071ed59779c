"""Towers inside other models of transformers: which settings those need, and what goes wrong with others."""

from __future__ import annotations

from dino_tower.vlm.check import ImageTokens, check_vlm, image_tokens_for

__all__ = ["ImageTokens", "check_vlm", "image_tokens_for"]
