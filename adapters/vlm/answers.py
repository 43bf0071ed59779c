"""What a VLM answers to the questions of conversations, and how often it is right: for probes and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dino_tower.adapters.vlm.conversations import IMAGE, Conversation, read_conversations
from dino_tower.images import read_image


@dataclass(frozen=True)
class Answer:
    """kind: the question's "kind" in the file, or ""; wanted, given: words; right: they are the same."""

    kind: str
    wanted: str
    given: str

    @property
    def right(self) -> bool:
        """Same words, whatever their case and the spaces between them."""
        return self.given.lower().split() == self.wanted.lower().split()


def ask(
    vlm: Any,
    processor: Any,
    file: str | Path,
    *,
    images: str | Path | None = None,
    batch_size: int = 32,
    words: int = 8,
) -> list[Answer]:
    """The greedy answer to the first question of each conversation, in order of the file.

    file, images: as for `read_conversations`. words: tokens of an answer at most. One Answer a conversation, so that
    two VLMs, or a VLM and its blind control, can be compared question by question. Raises ConfigError as reading does.
    """
    conversations = read_conversations([file], images)
    given: list[str] = []
    for start in range(0, len(conversations), batch_size):
        given += _batch(vlm, processor, conversations[start : start + batch_size], words)
    first = [next(i for i, (role, _) in enumerate(one.turns) if role == "assistant") for one in conversations]
    wanted = [one.turns[i][1] for one, i in zip(conversations, first, strict=True)]
    return [Answer(one.kind, *row) for one, *row in zip(conversations, wanted, given, strict=True)]


def accuracy(answers: Sequence[Answer]) -> dict[str, float]:
    """Share of right answers of each kind, and of all of them ("all")."""
    found = {
        kind: [one.right for one in answers if one.kind == kind] for kind in sorted({a.kind for a in answers} - {""})
    }
    found["all"] = [one.right for one in answers]
    return {kind: sum(right) / len(right) for kind, right in found.items() if right}


@torch.no_grad()
def _batch(vlm: Any, processor: Any, conversations: Sequence[Conversation], words: int) -> list[str]:
    tokenizer = processor.tokenizer
    texts, pictures = [], []
    for one in conversations:
        first = next(i for i, (role, _) in enumerate(one.turns) if role == "assistant")
        text = tokenizer.apply_chat_template(
            one.messages(first), chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
        )
        texts.append(text.replace(IMAGE, IMAGE * vlm.config.image_seq_length))
        pictures += [read_image(path) for path in one.images]
    inputs = dict(tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    if pictures:
        pixels = [processor.image_processor(picture, return_tensors="pt").pixel_values for picture in pictures]
        inputs["pixel_values"] = torch.cat(pixels).to(vlm.dtype)
    inputs = {key: value.to(vlm.device) for key, value in inputs.items()}
    written = vlm.generate(**inputs, max_new_tokens=words, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return [
        text.strip()
        for text in tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ]
