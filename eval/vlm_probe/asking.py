"""From questions to numbers: whole words, answers of one token, many questions of a picture in one row.

P pictures, Q questions of one, T words of a row, M questions of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dino_tower.scenes.questions import Question

UNKNOWN = 0


class Vocabulary:
    """The words of questions, and their answers as one token each ("top left" too). 0 is any other word.

    longest: words of the longest question.
    """

    def __init__(self, questions: Iterable[Question]) -> None:
        words, said, self.longest = set[str](), set[str](), 1
        for question in questions:
            split = question.text.split()
            words.update(split)
            said.add(question.answer)
            self.longest = max(self.longest, len(split))
        self.words = {word: i for i, word in enumerate(sorted(words), start=1)}
        self.answers = {answer: i for i, answer in enumerate(sorted(said), start=1 + len(words))}

    def __len__(self) -> int:
        return 1 + len(self.words) + len(self.answers)


@dataclass(frozen=True)
class Asked:
    """What is asked of one picture. words: ids of each question; answers: int64 [Q] ids; kinds: of each question."""

    words: tuple[np.ndarray, ...]
    answers: np.ndarray
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)

    def some(self, most: int, rng: np.random.Generator) -> Asked:
        """At most `most` questions; each kind is drawn alike often, though pairs have many more questions."""
        if len(self) <= most:
            return self
        counts = Counter(self.kinds)
        waiting = rng.exponential(size=len(self)) * np.array([counts[kind] for kind in self.kinds])
        chosen = np.sort(np.argsort(waiting)[:most])  # the first of so many clocks, rarer kinds running faster
        return Asked(tuple(self.words[i] for i in chosen), self.answers[chosen], tuple(self.kinds[i] for i in chosen))


def encode(questions: Sequence[Question], vocabulary: Vocabulary) -> Asked:
    """An answer that training never gave is 0, which no model says; a question keeps its last `longest` words."""
    split = [one.text.split()[-vocabulary.longest :] for one in questions]
    words = tuple(np.array([vocabulary.words.get(word, UNKNOWN) for word in one], np.int64) for one in split)
    answers = np.array([vocabulary.answers.get(one.answer, UNKNOWN) for one in questions], np.int64)
    return Asked(words, answers, tuple(one.kind for one in questions))


class Rows(NamedTuple):
    """A batch of pictures with their questions one after the other, filled up with 0.

    words, places (of a word in its question), turns (number of the question, -1 beyond the last): int64 [P, T].
    picture, last: int64 [M], the row of each question and the place of its last word there. answers: int64 [M].
    """

    words: Tensor
    places: Tensor
    turns: Tensor
    picture: Tensor
    last: Tensor
    answers: Tensor


def rows_of(pictures: Sequence[Asked]) -> Rows:
    """See Rows; the questions keep their order."""
    lengths = [[len(one) for one in asked.words] for asked in pictures]
    shape = (len(pictures), max(map(sum, lengths)))
    words, places, turns = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    last = []
    for row, (asked, own) in enumerate(zip(pictures, lengths, strict=True)):
        total = sum(own)
        words[row, :total] = np.concatenate(asked.words)
        places[row, :total] = np.concatenate([np.arange(n) for n in own])
        turns[row, :total] = np.repeat(np.arange(len(own)), own)
        last.append(np.cumsum(own) - 1)
    picture = np.repeat(np.arange(len(pictures)), [len(own) for own in lengths])
    answers = np.concatenate([asked.answers for asked in pictures])
    return Rows(*map(torch.from_numpy, (words, places, turns, picture, np.concatenate(last), answers)))


def commonest(pictures: Sequence[Asked]) -> dict[str, int]:
    """The answer that training gives most often to each kind: what can be said without picture and without words."""
    counts: dict[str, Counter[int]] = {}
    for asked in pictures:
        for kind, answer in zip(asked.kinds, asked.answers.tolist(), strict=True):
            counts.setdefault(kind, Counter())[answer] += 1
    return {kind: min(found, key=lambda one: (-found[one], one)) for kind, found in counts.items()}
