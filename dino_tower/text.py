"""The text half of a tower that has one, and its pictures and patches in the space of the texts.

N texts, E features of a text, B pictures, h x w the patch grid, F features of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from dino_tower.dual import KIND as DUAL
from dino_tower.errors import ConfigError
from dino_tower.text_tower import KIND as ALIGNED
from dino_tower.tokens import Tokens

PROJECTED = ("clip", DUAL)  # their class token and their last word go through one linear layer each


def text_embeddings(whole: Any, folder: str, name: str, texts: Sequence[str]) -> Tensor:
    """[N, E] as `get_text_features` of the model's class. Raises ConfigError without a tokenizer in `folder`.

    SigLIP was trained on texts filled up to a fixed length, without a mask; all others are as long as they are.
    """
    if isinstance(texts, str) or not texts:
        raise ConfigError(f"texts are a list of strings, not {texts!r}")
    aligned = whole.config.model_type == ALIGNED
    config = whole.config.text_config
    length = whole.config.text_length if aligned else config.max_position_embeddings
    masked = aligned or whole.config.model_type in PROJECTED
    padding = whole.config.text_padding if aligned else "longest" if masked else "max_length"
    own = getattr(whole, "tokenizer", None)  # of a run, which has no tokenizer's files
    tokenizer = _tokenizer(folder, name) if own is None else own
    if len(tokenizer) < config.vocab_size // 2:  # without files of its own it is made up, silently
        known = config.vocab_size
        raise ConfigError(f"{name}: its tokenizer knows {len(tokenizer)} words, its text encoder {known}; save it, too")
    words = tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
    device = whole.text_model.device
    mask = words["attention_mask"].to(device) if masked else None
    return whole.get_text_features(input_ids=words["input_ids"].to(device), attention_mask=mask).pooler_output


def embed(whole: Any, tokens: Tokens) -> Tensor:
    """Pictures [B, E] from their normed tokens, as `get_image_features` of the model's class.

    Raises ConfigError for a SigLIP that was saved without its pooling head.
    """
    if whole.config.model_type == ALIGNED:
        return whole.embed_tokens(tokens)[0]
    if whole.config.model_type in PROJECTED:
        return whole.visual_projection(tokens.pooled)
    if not whole.vision_model.config.vision_use_head:
        raise ConfigError("this SigLIP has no pooling head: its pictures have no embedding")
    return whole.vision_model.head(tokens.patches.flatten(1, 2))


def embed_patches(whole: Any, tokens: Tokens) -> Tensor:
    """Single patches [B, h, w, F] from the normed tokens, to be compared with `patch_part` of texts.

    A tower with text alignment was trained for it; of CLIP it is the plain projection. ConfigError for SigLIP, whose
    pooling head takes all patches together.
    """
    if whole.config.model_type == ALIGNED:
        return whole.embed_tokens(tokens)[1]
    if whole.config.model_type in PROJECTED:
        return whole.visual_projection(tokens.patches)
    raise ConfigError(f"a {whole.config.model_type} pools all patches at once: single ones have no embedding")


def patch_part(whole: Any, texts: Tensor) -> Tensor:
    """What of texts [N, E] patches are compared with: [N, F], all of it but for a tower with text alignment."""
    return whole.patch_half(texts) if whole.config.model_type == ALIGNED else texts


@lru_cache(maxsize=4)
def _tokenizer(folder: str, name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # missing files, missing packages, damaged files
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name}: its tokenizer cannot be loaded: {reason}") from None
