"""Questions about scenes as conversations, and a small language model that knows their words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dino_tower.adapters.scene_questions import write_scene_questions
from dino_tower.adapters.vlm.conversations import read_conversations
from dino_tower.adapters.vlm.small_language_model import write_small_language_model
from dino_tower.errors import ConfigError
from dino_tower.scenes.questions import KINDS


def test_written_for_training(tmp_path: Path) -> None:
    """Read back as conversations; blind ones ask the same without a picture."""
    seeing = write_scene_questions(tmp_path / "seeing", 6, size=48)
    blind = write_scene_questions(tmp_path / "blind", 6, blind=True, size=48)
    found, control = read_conversations([seeing]), read_conversations([blind])
    assert len(found) == len(control) > 12
    assert all(len(one.images) == 1 for one in found) and not any(one.images for one in control)
    for one, other in zip(found, control, strict=True):
        assert one.turns[0][1] == f"<image>\n{other.turns[0][1]}" and one.turns[1] == other.turns[1]
    assert {entry["kind"] for entry in json.loads(seeing.read_text())} <= set(KINDS)
    with pytest.raises(ConfigError, match="is not empty; name a new folder"):
        write_scene_questions(tmp_path / "blind", 6)


def test_a_small_language_model_knows_the_words(tmp_path: Path) -> None:
    """Every word of the questions and of the turns around them, and none besides."""
    file = write_scene_questions(tmp_path / "questions", 3, size=48)
    folder = write_small_language_model(tmp_path / "words", [file], width=16, depth=1, heads=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for one in read_conversations([file]):
        for _, text in one.turns:
            spoken = text.replace("<image>", "")
            assert tokenizer.unk_token_id not in tokenizer(f"USER: {spoken} ASSISTANT:").input_ids
    assert tokenizer.unk_token_id in tokenizer("perpendicular").input_ids
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == len(tokenizer)
    with pytest.raises(ConfigError, match="width 15 with 2 heads"):
        write_small_language_model(tmp_path / "other", [file], width=15, heads=2)
