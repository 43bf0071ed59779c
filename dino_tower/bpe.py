"""A byte-pair encoding learned from the captions themselves: lower case, with a start and an end, as CLIP has it.

V words: a start, an end, the 256 bytes, and V - 258 merges of two words into a new one. Every text has an encoding:
what was never merged is spelt in bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

START, END = "<|startoftext|>", "<|endoftext|>"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
LEAST = 2 + len(BYTES)  # words that are always there; merge i makes word LEAST + i

Merge = tuple[int, int]


def learn_merges(texts: Iterable[str], words: int) -> list[Merge]:
    """The merges that a vocabulary of `words` has room for, most frequent pairs first; small data has fewer.

    The same texts in the same order give the same merges in every process.
    """
    tokenizer = _untrained(models.BPE())
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=words, initial_alphabet=BYTES, special_tokens=[START, END], show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    return [(model["vocab"][one], model["vocab"][other]) for one, other in model["merges"]]


def bpe_tokenizer(merges: Sequence[Merge], length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of these merges. A text is cut to `length` words, its start and end among them; ends fill it up."""
    names = [START, END, *BYTES]
    for one, other in merges:
        names.append(names[one] + names[other])
    pairs = [(names[one], names[other]) for one, other in merges]
    tokenizer = _untrained(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=pairs))
    tokenizer.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 0), (END, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=length,
        padding_side="right",
        truncation_side="right",
    )


def _untrained(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
