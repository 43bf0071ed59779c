"""What a tower sees in pictures, as a page to look through."""

from __future__ import annotations

from dino_tower.explorer.look import Explored, explore, parse_size, summary

__all__ = ["Explored", "explore", "parse_size", "summary"]
