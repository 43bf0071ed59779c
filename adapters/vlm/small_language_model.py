"""A small language model of random weights that knows the words of your conversations: to probe towers, to try out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dino_tower.adapters.vlm.conversations import IMAGE, read_conversations
from dino_tower.errors import ConfigError
from dino_tower.loading import quiet

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
TURNS = ("USER", "ASSISTANT", ":")  # what the chat template adds


def write_small_language_model(
    folder: str | Path,
    files: Sequence[str | Path],
    *,
    images: str | Path | None = None,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    seed: int = 0,
) -> Path:
    """A Llama and a tokenizer of whole words in `folder`, for `build_vlm` and `--language-model`; returns the folder.

    files, images: conversations, as for `read_conversations`: their words are its vocabulary. It knows nothing yet:
    train all of it (`--language.method full`). Raises ConfigError for a folder that is not empty and for sizes that
    do not fit.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    home = Path(folder)
    if home.exists() and (home.is_file() or any(home.iterdir())):
        raise ConfigError(f"{home} is not empty; name a new folder")
    if width < 1 or depth < 1 or heads < 1 or width % (2 * heads):
        raise ConfigError(f"width {width} with {heads} heads and depth {depth}: heads of an even width are needed")
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *_words(files, images)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    pad, unknown, start, end = SPECIAL
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=pad, unk_token=unknown, bos_token=start, eos_token=end
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(home)
    tokenizer.save_pretrained(home)
    return home


def _words(files: Sequence[str | Path], images: str | Path | None) -> list[str]:
    """The commonest first; words and marks apart, as the tokenizer cuts them."""
    counts = Counter(TURNS)
    for one in read_conversations(files, images):
        for _, text in one.turns:
            counts.update(re.findall(r"\w+|[^\w\s]+", text.replace(IMAGE, " ")))
    return [word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
