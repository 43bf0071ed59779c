"""Words learned from captions: everything can be spelt, and every process learns the same."""

from __future__ import annotations

from dino_tower.bpe import LEAST, bpe_tokenizer, learn_merges

TEXTS = ["a red ring", "two blue discs left of a star", "a red ring among bars", "Ein Vögelchen", "stars"]


def test_words_are_learned_from_captions_and_anything_can_be_spelt() -> None:
    merges = learn_merges(TEXTS * 3, 300)
    tokenizer = bpe_tokenizer(merges, 16)
    assert len(tokenizer) == LEAST + len(merges) <= 300
    start, *words, end = tokenizer("A RED Ring").input_ids
    assert (start, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.decode(words).strip() == "a red ring" and len(words) == 3
    for text in ("zürich 中文 №7", "a red ring"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text.lower()
    long = tokenizer("ring " * 40, truncation=True).input_ids
    assert len(long) == 16 and long[-1] == end
    assert learn_merges([], 300) == [] and len(bpe_tokenizer([], 16)) == LEAST
    assert learn_merges(TEXTS, LEAST) == []


def test_the_tokenizer_of_the_merges_is_the_one_that_was_trained() -> None:
    """Word LEAST + i is what merge i makes, so that merges alone say which word has which number."""
    merges = learn_merges(TEXTS * 3, 320)
    tokenizer = bpe_tokenizer(merges, 16)
    backend = tokenizer.backend_tokenizer
    for i, (one, other) in enumerate(merges):
        assert backend.id_to_token(LEAST + i) == backend.id_to_token(one) + backend.id_to_token(other)
    assert [pair for pair in merges if max(pair) >= LEAST + len(merges)] == []
    assert learn_merges(TEXTS * 3, 300) == merges[: 300 - LEAST]  # a larger vocabulary begins with the smaller one
