"""The VLM probe: what does a frozen tower tell a small language model that is asked about pictures?"""

from __future__ import annotations

from dino_tower.eval.vlm_probe.asking import Asked, Vocabulary, commonest, encode
from dino_tower.eval.vlm_probe.fitting import Plan, answers, blind, fit, image_tokens

__all__ = ["Asked", "Plan", "Vocabulary", "answers", "blind", "commonest", "encode", "fit", "image_tokens"]
