"""Tasks that rank pictures and texts: perfect and blind towers, chance by hand, and what would change the number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Item, Relevance
from dino_tower.eval.retrieval import average_precision, chance
from dino_tower.eval.stats import interval, score
from dino_tower.eval.task import Split
from dino_tower.eval.tasks.copy_detection import COPY_DETECTION
from dino_tower.eval.tasks.retrieval import RETRIEVAL
from dino_tower.eval.tasks.text_image import TEXT_IMAGE
from dino_tower.eval.tasks.zero_shot import PROMPTS, ZERO_SHOT, name_of
from dino_tower.eval.view import View

PICTURE = Image.new("RGB", (120, 80))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class FakeView:
    """vectors: {split: [N, D]}; texts: what a text means."""

    found: dict[str, Tensor]
    texts: dict[str, Tensor] | None = None

    def vectors(self, data: Dataset) -> Tensor:
        return self.found[data.split]

    embed = vectors

    def rows(self, data: Dataset) -> list[Tensor]:
        return [one[None, None].clamp(min=0) + 1e-3 for one in self.found[data.split]]

    @property
    def tower(self) -> Any:
        return SimpleNamespace(has_text=self.texts is not None, text=self.text)

    def text(self, texts: Sequence[str], patches: bool = False) -> Tensor:
        assert self.texts is not None
        return torch.stack([next(v for k, v in self.texts.items() if k in text) for text in texts])


def view(test: Tensor, train: Tensor | None = None, texts: dict[str, Tensor] | None = None) -> View:
    found = {"test": test} if train is None else {"test": test, "train": train}
    return FakeView(found, texts)  # type: ignore[return-value]


def dataset(items: Sequence[Item], split: str = "test", **more: Any) -> Dataset:
    return Dataset("set", "made", split, "hand", items, frozenset(), **more)


def buildings(places: int = 10) -> tuple[Split, Tensor]:
    """Of each building 2 easy, 2 hard pictures and a junk one, and a query; the last query has no hard pictures."""
    database, queries = [], []
    for place in range(places):
        own = range(5 * place, 5 * place + 5)
        database += [Item(f"{place}-{i}", PICTURE) for i in range(5)]
        hard = tuple(own[2:4]) if place < places - 1 else ()
        queries.append(Item(f"query {place}", PICTURE, query=Relevance(tuple(own[:2]), hard, tuple(own[4:]))))
    centres = noise(places, 64)
    near = torch.tensor([0.3, 0.3, 0.6, 0.6, 0.1])  # the junk is nearest
    rows = centres.repeat_interleave(5, 0) + near.repeat(places)[:, None] * noise(5 * places, 64, seed=1)
    return Split(None, dataset(database + queries)), torch.cat([rows, centres])


def test_retrieval_finds_what_is_there_and_passes_over_junk() -> None:
    data, vectors = buildings()
    found = RETRIEVAL.run(view(vectors), data, 0)
    assert {name: score(parts) for name, parts in found.parts.items()} == {"medium": 1.0, "hard": 1.0}
    assert found.ids[0] == "query 0"
    assert interval(found.parts["medium"]).units == 10
    assert interval(found.parts["hard"]).units == 9  # a query without positives is left out, not scored 0
    assert found.pictures["query 0"].width > 300


def test_blind_retrieval_is_what_a_random_order_gives() -> None:
    data, vectors = buildings(40)
    assert RETRIEVAL.floor is not None
    floor = RETRIEVAL.floor(data)
    draws = [RETRIEVAL.run(view(noise(*vectors.shape, seed=seed)), data, 0).parts for seed in range(12)]
    for name in ("medium", "hard"):
        assert score(floor[name]) == pytest.approx(np.mean([score(one[name]) for one in draws]), rel=0.15)


@pytest.mark.parametrize(("images", "positives", "retrieved"), [(5, 2, 3), (5, 1, 5), (4, 3, 2), (1, 1, 20)])
def test_chance_is_the_mean_over_all_orders(images: int, positives: int, retrieved: int) -> None:
    every = []
    for order in permutations(range(images)):
        places = sorted(place for place in order[:positives] if place < retrieved)
        every.append(average_precision(places, positives))
    assert chance(images, positives, retrieved) == pytest.approx(np.mean(every))


def test_a_list_that_was_cut_short_is_refused() -> None:
    data, vectors = buildings()
    short = Split(None, dataset(data.test.items[5:]))
    with pytest.raises(ConfigError, match="query 9 should find picture 45 of 45"):
        RETRIEVAL.run(view(vectors[5:]), short, 0)


def copies(count: int = 30) -> Split:
    items = [Item(f"original/{i}", PICTURE) for i in range(count)]
    return Split(None, dataset(items + [Item(f"copy/{i}", PICTURE, query=Relevance((i,))) for i in range(count)]))


def test_copies_are_found_by_a_perfect_tower() -> None:
    data, originals = copies(), noise(30, 32)
    found = COPY_DETECTION.run(view(torch.cat([originals, originals + 0.1 * noise(30, 32, seed=1)])), data, 0)
    assert score(found.parts["map"]) == 1.0
    assert found.chosen == {"whitening": "none: no training part"}
    assert COPY_DETECTION.floor is not None
    floor = score(COPY_DETECTION.floor(data)["map"])
    blind = [score(COPY_DETECTION.run(view(noise(60, 32, seed=seed)), data, 0).parts["map"]) for seed in range(2, 12)]
    assert floor == pytest.approx(np.mean(blind), rel=0.25)


def test_whitening_is_learned_from_other_pictures() -> None:
    """What all pictures share drowns what tells them apart, until it is whitened away; the judged ones say nothing."""
    loud = torch.ones(32)
    loud[:4] = 60

    def pictures(seed: int, count: int) -> Tensor:
        return loud * noise(count, 32, seed=seed)

    originals = pictures(0, 30)
    changed = originals + loud * torch.cat([2 * noise(30, 4, seed=1), 0.1 * noise(30, 28, seed=2)], 1)
    test, train = torch.cat([originals, changed]), pictures(3, 400)
    alone, data = COPY_DETECTION.run(view(test), copies(), 0), copies()
    fitted = dataset([Item(str(i), PICTURE) for i in range(400)], "train")
    whitened = COPY_DETECTION.run(view(test, train), Split(fitted, data.test), 0)
    assert score(alone.parts["map"]) < 0.7
    assert score(whitened.parts["map"]) > score(alone.parts["map"]) + 0.2
    assert whitened.chosen == {"whitening": "64 directions of 400 training pictures"}


NAMES = ("n1 ant, Formica", "bumble_bee", "cow", "dog", "elk", "fox", "gnu")
MEANING = {name_of(name): row for name, row in zip(NAMES, torch.eye(7), strict=True)}


def classes(count: int = 70, names: Sequence[str] = NAMES) -> Split:
    items = [Item(str(i), PICTURE, label=i % len(names)) for i in range(count)]
    return Split(None, dataset(items, classes=tuple(names)))


def test_zero_shot_names_what_a_perfect_tower_sees() -> None:
    data = classes()
    embedded = torch.eye(7)[torch.arange(70) % 7] + 0.1 * noise(70, 7)
    found = ZERO_SHOT.run(view(embedded, texts=MEANING), data, 0)
    assert {name: score(parts) for name, parts in found.parts.items()} == {"top-1": 1.0, "plain": 1.0, "top-5": 1.0}
    assert ZERO_SHOT.floor is not None
    floor = {name: score(parts) for name, parts in ZERO_SHOT.floor(data).items()}
    assert floor == pytest.approx({"top-1": 1 / 7, "plain": 1 / 7, "top-5": 5 / 7})
    blind = [ZERO_SHOT.run(view(noise(70, 7, seed=seed), texts=MEANING), data, 0).parts for seed in range(8)]
    for name, chance_ in floor.items():
        assert np.mean([score(one[name]) for one in blind]) == pytest.approx(chance_, abs=0.05)


def test_zero_shot_asks_with_names_as_people_say_them() -> None:
    assert [name_of(name) for name in NAMES[:3]] == ["n1 ant", "bumble bee", "cow"]
    asked: list[str] = []

    def text(texts: Sequence[str], patches: bool = False) -> Tensor:
        asked.extend(texts)
        return noise(len(texts), 7)

    fake: Any = SimpleNamespace(embed=lambda data: noise(4, 7), tower=SimpleNamespace(has_text=True, text=text))
    found = ZERO_SHOT.run(fake, classes(4, NAMES[1:3]), 0)
    assert asked[0] == "itap of a bumble bee."
    assert len(asked) == 2 * (len(PROMPTS) + 1)
    assert set(found.parts) == {"top-1", "plain"}  # the five best of two classes are always right


def test_towers_without_text_and_sets_without_captions_say_why() -> None:
    blind, sees = view(torch.eye(7)), view(torch.eye(7), texts=MEANING)
    assert ZERO_SHOT.fits(blind, classes()) == TEXT_IMAGE.fits(blind, classes()) == "no text encoder"
    assert ZERO_SHOT.fits(sees, classes()) is None
    assert TEXT_IMAGE.fits(sees, classes()) == "fewer than two pictures with captions"


def captioned(counts: Sequence[int]) -> tuple[Split, dict[str, Tensor]]:
    """Caption "<3/1>" is the second of picture 3."""
    items = [Item(str(i), PICTURE, captions=tuple(f"<{i}/{c}>" for c in range(n))) for i, n in enumerate(counts)]
    return Split(None, dataset(items)), {f"<{i}/": row for i, row in enumerate(F.normalize(noise(len(counts), 32)))}


def test_captions_find_their_pictures_and_pictures_a_caption() -> None:
    data, meaning = captioned([1, 2, 0, 5, 1, 3])
    images = torch.stack(list(meaning.values()))
    found = TEXT_IMAGE.run(view(images, texts=meaning), data, 0)
    assert {name: score(parts) for name, parts in found.parts.items()} == dict.fromkeys(TEXT_IMAGE.metrics, 1.0)
    assert found.ids == ["0", "1", "3", "4", "5"]  # the one without captions takes no part
    assert list(found.pictures) == found.ids
    images[3] = -images[3]  # its five captions are lost, and so is it
    lost = TEXT_IMAGE.run(view(images, texts=meaning), data, 0).parts
    assert score(lost["image@1"]) == pytest.approx(7 / 12)  # captions, not pictures, are counted
    assert score(lost["text@1"]) == pytest.approx(4 / 5)


def test_blind_text_retrieval_is_chance() -> None:
    data, meaning = captioned([1, 3])
    assert TEXT_IMAGE.floor is not None
    floor = TEXT_IMAGE.floor(data)
    assert score(floor["image@1"]) == 0.5
    assert floor["text@1"].numerator[:, 0].tolist() == pytest.approx([1 / 4, 3 / 4])
    assert score(floor["text@5"]) == 1.0
    data, meaning = captioned([1, 2, 3, 4, 5] * 12)
    floor = TEXT_IMAGE.floor(data)
    draws = [TEXT_IMAGE.run(view(noise(60, 32, seed=s), texts=meaning), data, 0).parts for s in range(1, 9)]
    # All captions of a picture mean the same here, so only the pictures' ranks are random.
    for name in ("image@5", "image@10"):
        assert score(floor[name]) == pytest.approx(np.mean([score(one[name]) for one in draws]), abs=0.05)
