"""Conversations as batches: words through the chat template, pictures through the tower's processor, answers as labels.

T tokens of the longest conversation of a batch, P its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dino_tower.adapters.vlm.conversations import IMAGE, Conversation
from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage, read_image

IGNORED = -100  # label of a token that is not learned


@dataclass(frozen=True)
class Words:
    """How conversations become tokens. image_tokens: for each picture; length: at most so many in all."""

    processor: Any
    image_tokens: int
    length: int

    def __post_init__(self) -> None:
        if not getattr(self.processor.tokenizer, "is_fast", False):
            raise ConfigError(
                "the tokenizer cannot tell where its tokens come from (a slow one); take its fast version"
            )

    def encode(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Tokens and labels: what the assistant says, and the end of its turn; the rest is IGNORED.

        Raises ConfigError where the length leaves nothing of an answer, or cuts a picture.
        """
        text = self._text(conversation, None, False)
        spans = [self._span(conversation, turn, text) for turn in self._answers(conversation)]
        tokens = self.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
        learned = [any(a < end and b > start for start, end in spans) for a, b in offsets]
        labels = [token if learn else IGNORED for token, learn in zip(ids, learned, strict=True)]
        found = sum(1 for token in ids if token == self.processor.image_token_id)
        kept = sum(1 for token in ids[: self.length] if token == self.processor.image_token_id)
        if found != self.image_tokens * len(conversation.images):
            raise ConfigError(
                f"{conversation.name}: {found} image tokens for {len(conversation.images)} pictures of"
                f" {self.image_tokens}; does the chat template leave {IMAGE} as it is?"
            )
        if kept < found or not any(learned[: self.length]):
            raise ConfigError(
                f"{conversation.name}: --length {self.length} cuts off its answers or its pictures, which take"
                f" {found} tokens; it has {len(ids)}"
            )
        return ids[: self.length], labels[: self.length]

    def _text(self, conversation: Conversation, until: int | None, prompt: bool) -> str:
        template = self.processor.chat_template
        rendered: str = self.processor.tokenizer.apply_chat_template(
            conversation.messages(until), chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        return rendered.replace(IMAGE, IMAGE * self.image_tokens)

    def _span(self, conversation: Conversation, turn: int, text: str) -> tuple[int, int]:
        before, after = self._text(conversation, turn, True), self._text(conversation, turn + 1, False)
        if not text.startswith(before) or not text.startswith(after):
            raise ConfigError(
                f"{conversation.name}: the chat template writes its first turns otherwise when more follow, so that"
                " answers cannot be told from questions; split it into conversations of one question each"
            )
        return len(before), len(after)

    @staticmethod
    def _answers(conversation: Conversation) -> list[int]:
        return [i for i, (role, _) in enumerate(conversation.turns) if role == "assistant"]


class Conversations(Dataset[dict[str, Any]]):
    """input_ids and labels (lists), pixel_values [P, 3, H, W] or None, of one conversation."""

    def __init__(self, conversations: Sequence[Conversation], words: Words) -> None:
        self.conversations, self.words = conversations, words

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises ConfigError for a picture that cannot be read."""
        one = self.conversations[index]
        ids, labels = self.words.encode(one)
        pictures = []
        for path in one.images:
            try:
                pictures.append(read_image(path))
            except UnreadableImage as error:
                raise ConfigError(f"{one.name}: {path}: cannot be read: {error.reason}") from None
        pixels = None
        if pictures:
            images = self.words.processor.image_processor
            pixels = torch.cat([images(picture, return_tensors="pt").pixel_values for picture in pictures])
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels}

    @property
    def all_have_pictures(self) -> bool:
        """Whether every batch reaches the tower and the projector."""
        return all(one.images for one in self.conversations)


@dataclass(frozen=True)
class Collator:
    """Rows padded on the right: input_ids, labels, attention_mask [B, T]; pixel_values [P, 3, H, W] if any."""

    pad: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, value: int) -> Tensor:
            return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        batch = {
            "input_ids": padded("input_ids", self.pad),
            "labels": padded("labels", IGNORED),
            "attention_mask": torch.tensor(mask),
        }
        pictures = [row["pixel_values"] for row in rows if row["pixel_values"] is not None]
        return {**batch, "pixel_values": torch.cat(pictures)} if pictures else batch
