"""The text encoder: one from a directory with its tokenizer, or a small one whose vocabulary is that of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoModel, AutoTokenizer, DistilBertConfig, DistilBertModel

from dino_tower.adapters.text.settings import TextConfig
from dino_tower.errors import ConfigError
from dino_tower.text_tower import TEXT_CLASSES, check_text

# Whole models of pictures and texts, whose text half is taken.
WHOLE = ("clip", "siglip", "siglip2")
FILLED = ("siglip_text_model", "siglip2_text_model")  # trained on texts of one length, without a mask
POOLED = ("clip_text_model", *FILLED)
DECODERS = ("ForCausalLM", "LMHeadModel")  # in the names of classes that read from left to right


class TextEncoder(NamedTuple):
    """A text encoder with its tokenizer; see TextTowerConfig for the rest."""

    model: Any
    tokenizer: Any
    pooling: str
    length: int  # words that are read at most
    padding: str = "longest"

    def words(self, texts: Sequence[str]) -> Any:
        """input_ids and attention_mask [T, L] of texts, padded on the right."""
        return self.tokenizer(
            list(texts), padding=self.padding, truncation=True, max_length=self.length, return_tensors="pt"
        )


def small_encoder(config: TextConfig, tokenizer: Any) -> TextEncoder:
    """A DistilBERT without dropout for a tokenizer, drawn from torch's global random state."""
    if config.width % config.heads:
        raise ConfigError(f"text.width {config.width} does not divide into text.heads {config.heads}")
    model = DistilBertModel(
        DistilBertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=config.length,
            dim=config.width,
            n_layers=config.depth,
            n_heads=config.heads,
            hidden_dim=4 * config.width,
            dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return TextEncoder(model, tokenizer, "mean" if config.pooling == "auto" else config.pooling, config.length)


def read_encoder(config: TextConfig) -> TextEncoder:
    """The encoder of `text.encoder`, a directory. Raises ConfigError for whatever is wrong with it."""
    where = f"--text.encoder {config.encoder}"
    folder = str(config.encoder)
    try:
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = _weights(found, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:  # damaged directories are met with every kind of exception
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{where}: no text encoder of transformers with its tokenizer: {reason}") from None
    known = model.config.vocab_size
    if len(tokenizer) < known // 2:  # without files of its own a tokenizer is made up, silently
        raise ConfigError(
            f"{where}: its tokenizer knows {len(tokenizer)} words, the encoder {known}; save it there, too"
        )
    if tokenizer.pad_token is None:  # language models have none
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    positions = getattr(model.config, "max_position_embeddings", None)
    if model.config.model_type in FILLED:
        return TextEncoder(model, tokenizer, _pooling(config, found), positions or config.length, "max_length")
    length = min(config.length, positions - 2) if positions else config.length  # RoBERTa counts its positions from 2
    return TextEncoder(model, tokenizer, _pooling(config, found), length)


def _weights(found: Any, folder: str) -> Any:
    kind = found.model_type
    if kind in WHOLE:
        return AutoModel.from_pretrained(folder).text_model
    if kind in TEXT_CLASSES:
        return TEXT_CLASSES[kind].from_pretrained(folder)
    check_text(found)
    return AutoModel.from_pretrained(folder)


def _pooling(config: TextConfig, found: Any) -> str:
    if config.pooling != "auto":
        return config.pooling
    if found.model_type in (*WHOLE, *POOLED):
        return "pooler"
    names: Iterable[str] = found.architectures or ()
    return "last" if any(name.endswith(DECODERS) for name in names) else "mean"
