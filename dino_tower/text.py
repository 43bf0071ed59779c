"""The text half of CLIP and SigLIP, and their pictures in the space of the texts. N texts, E features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from dino_tower.errors import ConfigError
from dino_tower.tokens import Tokens


def text_embeddings(whole: Any, folder: str, name: str, texts: Sequence[str]) -> Tensor:
    """[N, E] as `get_text_features` of the model's class. Raises ConfigError without a tokenizer in `folder`.

    SigLIP was trained on texts filled up to a fixed length, without a mask; CLIP's are as long as they are.
    """
    if isinstance(texts, str) or not texts:
        raise ConfigError(f"texts are a list of strings, not {texts!r}")
    length = whole.config.text_config.max_position_embeddings
    clip = whole.config.model_type == "clip"
    padding = "longest" if clip else "max_length"
    tokenizer = _tokenizer(folder, name)
    if len(tokenizer) < whole.config.text_config.vocab_size // 2:  # without files of its own it is made up, silently
        known = whole.config.text_config.vocab_size
        raise ConfigError(f"{name}: its tokenizer knows {len(tokenizer)} words, its text encoder {known}; save it, too")
    words = tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
    device = whole.text_model.device
    mask = words["attention_mask"].to(device) if clip else None
    return whole.get_text_features(input_ids=words["input_ids"].to(device), attention_mask=mask).pooler_output


def embed(whole: Any, tokens: Tokens) -> Tensor:
    """Pictures [B, E] from their normed tokens, as `get_image_features` of the model's class.

    Raises ConfigError for a SigLIP that was saved without its pooling head.
    """
    if whole.config.model_type == "clip":
        return whole.visual_projection(tokens.cls)
    if not whole.vision_model.config.vision_use_head:
        raise ConfigError("this SigLIP has no pooling head: its pictures have no embedding")
    return whole.vision_model.head(tokens.patches.flatten(1, 2))


@lru_cache(maxsize=4)
def _tokenizer(folder: str, name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # missing files, missing packages, damaged files
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name}: its tokenizer cannot be loaded: {reason}") from None
