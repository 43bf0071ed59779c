"""Grounding probes: does text find what it names in a tower that knows pictures only, and how much of that is text?"""

from __future__ import annotations

from dino_tower.eval.grounding.answers import Answers
from dino_tower.eval.grounding.grounded import Grounded, Query, ground, is_spatial, unseen_compositions, without
from dino_tower.eval.grounding.phrases import embed_phrases, text_encoder
from dino_tower.eval.grounding.probes import map_probe, region_probe
from dino_tower.eval.grounding.regions import position_tokens

__all__ = [
    "Answers",
    "Grounded",
    "Query",
    "embed_phrases",
    "ground",
    "is_spatial",
    "map_probe",
    "position_tokens",
    "region_probe",
    "text_encoder",
    "unseen_compositions",
    "without",
]
