"""The VLM probe: a projector and a small language model are trained on questions about pictures, over a frozen tower.

Everything but the features is the same for every tower: pictures, questions, their order, the language model as it
is drawn. The same model over tokens that say nothing ("blind") is what words alone can tell. Questions about two
objects, left or right of and touching, are reported apart: they ask for more than what is there. The last layer
only: a language model takes minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.cache import key_of
from dino_tower.eval.datasets.base import Dataset, LazyItems
from dino_tower.eval.stats import Parts
from dino_tower.eval.task import Metric, Outcome, Split, Task
from dino_tower.eval.view import View
from dino_tower.eval.vlm_probe import Asked, Plan, Vocabulary, answers, blind, commonest, encode, fit
from dino_tower.scenes.questions import KINDS, RELATIONS, Question

TRAIN, TEST = 3000, 1000  # pictures at most
EACH, TESTED = 99, 2  # questions of each kind about a training and a test picture, at most
TITLES = {"what": "what", "where": "where", "count": "how many", "side": "left or right", "touching": "touching"}
METRICS = {
    "accuracy": Metric("right answers, mean of kinds"),
    "gain": Metric("gain over blind"),
    "relations": Metric("spatial relations"),
    "relations gain": Metric("spatial relations, gain over blind"),
    **{kind: Metric(title) for kind, title in TITLES.items()},
    "blind": Metric("blind", better="none"),
    "blind relations": Metric("spatial relations, blind", better="none"),
}
# What is asked, and what the blind model answers, hang on no tower: made once a benchmark, for the data at hand.
_ASKED: dict[str, tuple[Vocabulary, list[Asked], list[Asked]]] = {}
_BLIND: dict[str, list[np.ndarray]] = {}


def run(view: View, data: Split, seed: int, plan: Plan = Plan()) -> Outcome:  # noqa: B008  # frozen
    """Train on one part, count the right answers about the other."""
    train, test = some(data.trained(), TRAIN), some(data.test, TEST)
    vocabulary, learned, judged = asked_of(train, test)
    seeing, tested = patches_of(view, train), patches_of(view, test)
    losses: list[float] = []
    fitted = fit(seeing, learned, vocabulary, plan, seed, lambda step, loss: losses.append(loss))
    right = _right(answers(fitted, tested, judged), judged)

    words = [[one.words, one.answers.tolist()] for one in (*learned, *judged)]
    key = key_of({"asked": str(words), "grid": list(seeing.shape[1:3]), "plan": str(plan), "seed": seed})
    if key not in _BLIND:
        control = fit(blind(seeing), learned, vocabulary, plan, seed)
        _BLIND[key] = answers(control, blind(tested), judged)
    told = _right(_BLIND[key], judged)
    chosen = {"questions": sum(map(len, learned)), "loss at the end": float(np.mean(losses[-100:]))}
    return Outcome(_scores(judged, right, told), test.ids(), chosen)


def some(data: Dataset, most: int) -> Dataset:
    """At most so many pictures, evenly spread, as a set of its own: no others are read."""
    if len(data) <= most:
        return data
    places = np.linspace(0, len(data) - 1, most).round().astype(int).tolist()
    names = data.ids()
    items = LazyItems(most, lambda i: data.items[places[i]], lambda i: names[places[i]])
    return replace(data, items=items, chosen_by=f"{data.chosen_by}, {most} of {len(data)}", whole=None, places=())


def asked_of(train: Dataset, test: Dataset) -> tuple[Vocabulary, list[Asked], list[Asked]]:
    """Words of the training part, and what is asked of each picture."""
    key = key_of({"data": train.name, "train": train.ids(), "test": test.ids()})
    if key not in _ASKED:
        known: list[Sequence[Question]] = [item.questions(EACH) for item in train]
        vocabulary = Vocabulary(question for one in known for question in one)
        judged = [encode(item.questions(TESTED), vocabulary) for item in test]
        _ASKED[key] = vocabulary, [encode(one, vocabulary) for one in known], judged
    return _ASKED[key]


def patches_of(view: View, data: Dataset) -> Tensor:
    """[N, h, w, D] float16, in memory."""
    rows = view.rows(data)
    first = rows[0]
    found = torch.empty(len(rows), *first.shape, dtype=torch.float16)
    for i in range(len(rows)):
        if rows.grid(i) != first.shape[:2]:
            raise ConfigError("VLM probe: pictures of unlike grids")
        found[i] = rows[i]
    return found


def _right(given: Sequence[np.ndarray], asked: Sequence[Asked]) -> list[np.ndarray]:
    return [one == other.answers for one, other in zip(given, asked, strict=True)]


def _scores(asked: Sequence[Asked], right: Sequence[np.ndarray], told: Sequence[np.ndarray]) -> dict[str, Parts]:
    """The mean over kinds of the share of right answers; a picture is a unit, whose questions are not independent."""
    total, sums, blind_sums = (np.zeros((len(asked), len(KINDS))) for _ in range(3))
    for row, (one, own, other) in enumerate(zip(asked, right, told, strict=True)):
        kinds = np.array([KINDS.index(kind) for kind in one.kinds], int)
        for table, values in ((total, np.ones(len(one))), (sums, own), (blind_sums, other)):
            np.add.at(table[row], kinds, values)
    pairs = [KINDS.index(kind) for kind in RELATIONS]
    found = {
        "accuracy": Parts(sums, total),
        "gain": Parts(sums - blind_sums, total),
        "relations": Parts(sums[:, pairs], total[:, pairs]),
        "relations gain": Parts((sums - blind_sums)[:, pairs], total[:, pairs]),
    }
    found |= {kind: Parts(sums[:, [i]], total[:, [i]]) for i, kind in enumerate(KINDS)}
    return found | {
        "blind": Parts(blind_sums, total),
        "blind relations": Parts(blind_sums[:, pairs], total[:, pairs]),
    }


def fits(view: View, data: Split) -> str | None:
    """A training part to learn from."""
    return None if len(data.trained()) >= 2 else "needs two training pictures"


def prior(data: Split) -> Mapping[str, Parts]:
    """The commonest answer of each kind in training, whatever is asked."""
    _, learned, judged = asked_of(some(data.trained(), TRAIN), some(data.test, TEST))
    best = commonest(learned)
    said = [np.array([best.get(kind, -1) for kind in one.kinds]) for one in judged]
    right = _right(said, judged)
    found = _scores(judged, right, right)
    return {name: found[name] for name in ("accuracy", "relations", *KINDS)}


VLM_PROBE = Task(
    "vlm-probe", "VLM probe", METRICS, run, geometry="coarse", seeds=True, fits=fits, floor=prior,
    shown=partial(some, most=TEST),
)  # fmt: skip
