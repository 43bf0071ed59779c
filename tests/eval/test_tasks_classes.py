"""Linear probe and logistic regression as the benchmark runs them: known answers, and what would bend them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.linear_probe import LEARNING_RATES, standardise, train_heads
from dino_tower.eval.stats import score
from dino_tower.eval.task import Split, Task
from dino_tower.eval.tasks import TASKS
from dino_tower.eval.tasks.linear_probe import schedule

CLASSES, WIDTH = 4, 16
DIRECTIONS = 3 * torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0))
PICTURE = Image.new("RGB", (8, 8))
BOTH = pytest.mark.parametrize("task", [TASKS["linear-probe"], TASKS["logistic"]], ids=lambda task: task.name)


def made(split: str, labels: list[int]) -> Dataset:
    items = [Item(f"{split}-{place}", PICTURE, label=label) for place, label in enumerate(labels)]
    names = tuple("abcdefgh"[:CLASSES])
    return Dataset("made", "classes", split, "made", items, frozenset({"labels"}), names)


def pictures(train: int = 60, test: int = 40) -> Split:
    return Split(
        *(made(name, [i % CLASSES for i in range(count)]) for name, count in (("train", train), ("test", test)))
    )


def noise(item: Item, salt: str = "") -> torch.Tensor:
    seed = sum(ord(letter) * 31**place for place, letter in enumerate(item.id + salt)) % 2**31
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def seen(item: Item) -> torch.Tensor:
    assert item.label is not None
    return DIRECTIONS[item.label] + 0.3 * noise(item)


class FakeView:
    """Answers with a function of the item."""

    tower, layer = SimpleNamespace(name="fake"), "last"

    def __init__(self, pooled: Callable[[Item], torch.Tensor], mean: Callable[[Item], torch.Tensor] | None = None):
        self.pooled, self.mean = pooled, mean or pooled

    def vectors(self, data: Dataset) -> torch.Tensor:
        return torch.stack([self.pooled(item) for item in data])

    def means(self, data: Dataset) -> torch.Tensor:
        return torch.stack([self.mean(item) for item in data])


def done(task: Task, data: Split, view: Any = None, seed: int = 0) -> tuple[dict[str, float], dict[str, Any]]:
    view = view or FakeView(seen)
    assert task.fits(view, data) is None
    found = task.run(view, data, seed)
    assert list(found.ids) == [item.id for item in data.test]
    return {name: score(parts) for name, parts in found.parts.items()}, dict(found.chosen)


@BOTH
def test_a_tower_that_sees_is_right_and_one_that_does_not_is_at_chance(task: Task) -> None:
    assert done(task, pictures())[0] == {"accuracy": 1.0, "class-mean": 1.0}
    assert 0.05 <= done(task, pictures(), FakeView(noise))[0]["accuracy"] <= 0.45  # 0.25 is chance
    assert task.floor is not None
    assert {score(parts) for parts in task.floor(pictures()).values()} == {0.25}


@BOTH
def test_classes_that_test_does_not_hold_leave_the_mean_over_classes(task: Task) -> None:
    """Scored 0 they would halve it."""
    data = pictures()._replace(test=made("test", [0] * 30 + [1] * 10))
    assert done(task, data)[0] == {"accuracy": 1.0, "class-mean": 1.0}
    skewed = FakeView(lambda item: DIRECTIONS[0] if item.id.startswith("test") else seen(item))
    assert done(task, data, skewed)[0] == {"accuracy": 0.75, "class-mean": 0.5}


@BOTH
def test_a_class_that_train_does_not_hold_is_missed(task: Task) -> None:
    data = pictures()._replace(test=made("test", [0, 1, 2, 3, 4]))
    assert done(task, data)[0] == {"accuracy": 0.8, "class-mean": 0.8}
    assert task.floor is not None
    assert score(task.floor(data)["accuracy"]) == 0.2


def test_among_heads_that_are_equally_often_right_the_surest_is_taken() -> None:
    """An easy set: every learning rate is right on the slice of train. The first of them, 1e-5, has hardly moved from
    its random start, and named classes that it had never seen."""
    assert done(TASKS["linear-probe"], pictures())[1]["learning rate"] >= 1e-3


@BOTH
def test_nothing_is_chosen_on_test(task: Task) -> None:
    """Other labels in test, the same choice: they cannot have been looked at."""
    data = pictures()
    turned = made("test", [(i + 1) % CLASSES for i in range(40)])
    view = FakeView(lambda item: noise(item) + 0.5 * DIRECTIONS[int(item.id.split("-")[1]) % CLASSES])
    assert done(task, data, view)[1] == done(task, data._replace(test=turned), view)[1]


def test_the_best_head_on_test_is_a_better_number_for_a_blind_tower() -> None:
    """What the published script reports, from our parts: the largest of all heads on the split that is reported."""
    data, view = pictures(test=20), FakeView(noise)
    assert data.train is not None
    labels = torch.tensor([item.label for item in data.train])
    rows = view.vectors(data.train)
    standard = standardise(rows)
    heads = train_heads(standard(rows), labels, CLASSES, LEARNING_RATES, epochs=30, batch=16)
    truth = torch.tensor([item.label for item in data.test])
    test = standard(view.vectors(data.test))
    best = max(float((head(test).argmax(1) == truth).float().mean()) for head in heads)
    assert best > done(TASKS["linear-probe"], data, view)[0]["accuracy"]


def test_the_probe_takes_the_mean_patch_where_it_helps_and_only_where_it_is_another() -> None:
    task = TASKS["linear-probe"]
    found, chosen = done(task, pictures(), FakeView(noise, seen))
    assert (found["accuracy"], chosen["input"]) == (1.0, "pooled + mean patch")
    assert done(task, pictures(), FakeView(seen))[1]["input"] == "pooled"
    reduced = FakeView(seen, noise)
    reduced.layer = "pca256"
    assert done(task, pictures(), reduced)[1]["input"] == "pooled"


@BOTH
def test_scale_and_offset_of_features_do_not_matter(task: Task) -> None:
    """Towers differ in both; without standardising one learning rate suits some and starves others."""
    view = FakeView(lambda item: 1e-3 * seen(item) + 50)
    assert done(task, pictures(), view)[0]["accuracy"] == 1.0


def test_every_set_is_looked_at_long_enough_and_none_for_ever() -> None:
    for count in (4, 20, 60, 3500, 50_000, 1_300_000):
        epochs, batch = schedule(count)
        assert 16 <= batch <= 256
        assert 1 <= epochs <= 100
        assert epochs * count <= 2_000_000
        assert epochs * max(1, count // batch) >= 100
    assert schedule(50_000) == (10, 256)  # DINOv2's ten epochs


@BOTH
def test_what_cannot_be_told_apart_is_said(task: Task) -> None:
    view: Any = FakeView(seen)
    one = pictures()._replace(train=made("train", [2] * 9))
    assert "all training pictures are of one class" in str(task.fits(view, one))
    assert "3 training pictures" in str(task.fits(view, pictures()._replace(train=made("train", [0, 1, 1]))))
    with pytest.raises(ConfigError, match="no training part"):
        task.fits(view, pictures()._replace(train=None))
    bare = replace(pictures().test, items=[Item("x", PICTURE)])
    with pytest.raises(ConfigError, match="x has no label"):
        task.run(view, pictures()._replace(test=bare), 0)
