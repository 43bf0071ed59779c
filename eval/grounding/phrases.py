"""Phrases as vectors, by one encoder that stays as it is: the same texts mean the same to every tower.

Legend: N texts, E features.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError

TextEncoder = Callable[[Sequence[str]], Tensor]
HASHED = "hashed"
LETTERS = (3, 4)  # lengths of the runs of letters
PAIR = (
    0.5  # weight of two words that follow each other; a word is as long as 1, and so are its runs of letters together
)
BATCH = 256
_WORD = re.compile(r"\w+")


def embed_phrases(texts: Sequence[str], encoder: TextEncoder | str | Path = HASHED) -> Tensor:
    """Unit vectors [N, E] float32, on the CPU; equal texts have equal vectors.

    encoder: "hashed", a directory (`text_encoder`), or any function from texts to [N, E].
    Raises ConfigError for no texts, an empty one, and a vector that is zero or not finite.
    """
    if isinstance(texts, str) or not texts:
        raise ConfigError(f"phrases are a list of strings, not {texts!r}")
    if empty := next((text for text in texts if not text.strip()), None):
        raise ConfigError(f"a phrase without words: {empty!r}")
    encode = encoder if callable(encoder) else text_encoder(encoder)
    distinct = list(dict.fromkeys(texts))
    found = torch.cat([encode(distinct[i : i + BATCH]).float().cpu() for i in range(0, len(distinct), BATCH)])
    length = found.norm(dim=1)
    if bad := next((t for t, n in zip(distinct, length.tolist(), strict=True) if not 0 < n < float("inf")), None):
        raise ConfigError(f"phrase {bad!r}: its vector is zero or not finite")
    place = {text: i for i, text in enumerate(distinct)}
    return F.normalize(found, dim=1)[[place[text] for text in texts]]


def text_encoder(spelling: str | Path = HASHED) -> TextEncoder:
    """The encoder called "hashed" (`hashed_ngrams`; no files) or that of a directory which transformers reads.

    Of a directory: CLIP and SigLIP give their text embedding, any other model the mean of its last hidden states over
    the tokens of the text, as sentence encoders do. Nothing is fetched, only safetensors are read. Raises ConfigError.
    """
    if str(spelling) == HASHED:
        return hashed_ngrams
    if not (Path(spelling) / "config.json").is_file():
        raise ConfigError(f"text encoder {str(spelling)!r}: no directory with a config.json; choices: {HASHED}, DIR")
    return _from_directory(str(spelling))


def hashed_ngrams(texts: Sequence[str]) -> Tensor:
    """Words, pairs of words and runs of 3 and 4 letters, each thrown to a fixed vector of signs: [N, 512].

        phrase = sum over words w of s(w) + 1/2 s(w, next) + sum over the n runs c of <w> of s(c) / sqrt(n)

    s(x) are the 512 bits of BLAKE2b(x) as +1 and -1: a random projection of the bag of n-grams that is the same on
    every machine. It knows spelling and no meaning: "cat" and "kitten" share nothing, "cat" and "cats" a fifth.
    """
    return torch.from_numpy(np.stack([_bag(text) for text in texts])).float()


def _bag(text: str) -> np.ndarray:
    total, words = np.zeros(512), _WORD.findall(text.lower())
    for i, word in enumerate(words):
        runs = list(_runs(f"<{word}>"))
        total += _signs(f"word {word}")
        total += sum(_signs(f"letters {run}") for run in runs) / math.sqrt(len(runs))
        if i + 1 < len(words):
            total += PAIR * _signs(f"pair {word} {words[i + 1]}")
    return total


def _runs(word: str) -> Iterator[str]:
    for length in LETTERS:
        yield from (word[i : i + length] for i in range(len(word) - length + 1))


@lru_cache(maxsize=2**16)
def _signs(key: str) -> np.ndarray:
    digest = np.frombuffer(hashlib.blake2b(key.encode("utf-8", "surrogateescape")).digest(), np.uint8)
    return np.unpackbits(digest).astype(np.float64) * 2 - 1


@lru_cache(maxsize=2)
def _from_directory(folder: str) -> TextEncoder:
    from transformers import AutoModel, AutoTokenizer

    from dino_tower.loading import quiet
    from dino_tower.text import text_embeddings

    try:
        with quiet():
            model: Any = AutoModel.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, local_files_only=True, dtype=torch.float32
            ).eval()
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # damaged directories are met with every kind of exception
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"text encoder {folder!r}: cannot be loaded: {reason}") from None
    kind = model.config.model_type
    if kind in ("clip", "siglip"):
        return torch.no_grad()(lambda texts: text_embeddings(model, folder, f"text encoder {folder!r}", texts))
    known = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if known is None:
        raise ConfigError(f"text encoder {folder!r}: a {kind}, which reads no text")
    if len(tokenizer) < known // 2:  # without files of its own it is made up, silently
        raise ConfigError(f"text encoder {folder!r}: its tokenizer knows {len(tokenizer)} words, the model {known}")
    reader = model.get_encoder() if model.config.is_encoder_decoder else model
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        words = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        mask = words["attention_mask"]
        hidden = reader(input_ids=words["input_ids"], attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    return encode
