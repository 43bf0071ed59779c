"""A tower with the text tower that learned beside it: one model of transformers, for zero-shot classification."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import VisionTextDualEncoderProcessor

from dino_tower.dual import KIND
from dino_tower.errors import ConfigError
from dino_tower.export.same_features import Forward, forward_of
from dino_tower.families import family_of
from dino_tower.tower import Tower, load_tower

TEXTS = ("a photo of a bird", "three red rings left of a blue square", "?")


def write_text(tower: Tower, folder: Path, checkpoint: Path | None = None) -> list[str]:
    """A VisionTextDualEncoderModel with image processor and tokenizer. ConfigError for a tower without words."""
    if tower.text_kind != KIND:
        raise ConfigError(
            f"format text is for a run that learned from captions (--objective clip), and {tower.name} has no text "
            "tower of that kind; choose native"
        )
    if not family_of(tower.model).has_cls(tower.model):
        raise ConfigError(
            f"{tower.name} has no class token, of which transformers' model of pictures and texts is made; choose "
            "native, or load the run itself: load_tower(RUN).text"
        )
    tower.whole.save_pretrained(folder)
    VisionTextDualEncoderProcessor(tower.processor, tower.whole.tokenizer).save_pretrained(folder)
    return []


def open_text(folder: Path, tower: Tower) -> Forward:
    """As strangers open it; its texts must be those of `tower`."""
    written = load_tower(folder)
    if not torch.equal(written.text(TEXTS), tower.text(TEXTS)):
        raise ConfigError(f"{folder.name}: its text tower says something else than the run's; not kept")
    return forward_of(written)
