"""A tokenizer of whole words, made from the texts themselves: the vocabulary of small data is small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN = "[PAD]", "[UNK]"


def word_tokenizer(texts: Iterable[str], size: int, length: int) -> PreTrainedTokenizerFast:
    """The `size` most frequent words and signs of the texts, lower case; any other becomes [UNK].

    length: words of a text that are read at most. The same texts in any order make the same tokenizer.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Whitespace()
    counts: Counter[str] = Counter()
    for text, times in Counter(texts).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += times
    words = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    vocabulary = {word: number for number, word in enumerate([PAD, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, model_max_length=length, padding_side="right"
    )
