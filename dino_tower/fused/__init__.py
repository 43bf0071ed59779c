"""Several towers in one vision model of transformers. Importing this makes AutoModel know it; `load_tower` does."""

from __future__ import annotations

from dino_tower.fused.config import FUSIONS, FusedTowerConfig, Member
from dino_tower.fused.model import FusedTower

__all__ = ["FUSIONS", "FusedTower", "FusedTowerConfig", "Member"]
