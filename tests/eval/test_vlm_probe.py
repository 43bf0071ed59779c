"""Does the VLM probe give the known answer of towers whose answer is known?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets import allowed_tasks, open_dataset
from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.extraction import DATA, GRIDS
from dino_tower.eval.stats import compare, interval, score
from dino_tower.eval.task import Outcome, Split
from dino_tower.eval.tasks.vlm_probe import METRICS, TEST, VLM_PROBE, prior, run, some
from dino_tower.eval.view import Rows
from dino_tower.eval.vlm_probe import Plan, Vocabulary, encode, fit, image_tokens
from dino_tower.eval.vlm_probe.asking import rows_of
from dino_tower.eval.vlm_probe.language_model import SmallVLM
from dino_tower.scenes.questions import Question

COLOURS, SHAPES, SIDE = ("red", "blue", "green"), ("ring", "bar", "star"), 2
PLAN = Plan(steps=250, epochs=100, pictures=16, questions=8, lr=4e-3, width=64, heads=2)
Things = list[tuple[int, str, str]]  # place in the grid, colour, shape


def things(number: int) -> Things:
    """Three things of unlike colours in three of four places."""
    rng = np.random.default_rng(number)
    places, colours, shapes = rng.permutation(SIDE**2), rng.permutation(3), rng.integers(0, 3, 3)
    return [(int(places[i]), COLOURS[colours[i]], SHAPES[shapes[i]]) for i in range(3)]


def questions(number: int, each: int) -> list[Question]:
    seen = things(number)
    corners = ("top left", "top right", "bottom left", "bottom right")
    asked = [Question("what", f"what is the {colour} thing ?", shape) for _, colour, shape in seen]
    asked += [Question("where", f"where is the {colour} {shape} ?", corners[place]) for place, colour, shape in seen]
    for place, colour, shape in seen:
        for other, its_colour, its_shape in seen:
            if place % SIDE != other % SIDE:
                text = f"is the {colour} {shape} left or right of the {its_colour} {its_shape} ?"
                asked.append(Question("side", text, "left" if place % SIDE < other % SIDE else "right"))
    return asked[: 5 * each]


def truth(number: int) -> torch.Tensor:
    """[2, 2, 6]: colour and shape of what lies in each place."""
    found = torch.zeros(SIDE**2, 6)
    for place, colour, shape in things(number):
        found[place, COLOURS.index(colour)] = found[place, 3 + SHAPES.index(shape)] = 1
    return found.view(SIDE, SIDE, 6)


class FakeView:
    """Patches that are a function of the picture's number, on disk as the cache keeps them."""

    def __init__(self, folder: Path, feature: Any) -> None:
        self.folder, self.feature = folder, feature

    def rows(self, data: Dataset) -> Rows:
        numbers = [int(name) for name in data.ids()]
        np.save(self.folder / DATA, torch.cat([self.feature(one).flatten(0, 1) for one in numbers]).numpy())
        np.save(self.folder / GRIDS, np.array([(SIDE, SIDE)] * len(numbers), np.int32))
        return Rows([self.folder])


def part(first: int, count: int) -> Dataset:
    items = [
        Item(str(i), Image.new("RGB", (8, 8)), question_reader=partial(questions, i))
        for i in range(first, first + count)
    ]
    return Dataset("things", "made", "test", "made", items, frozenset({"questions"}))


DATA_OF_THINGS = Split(part(0, 300), part(1000, 60))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    view: Any = FakeView(tmp_path_factory.mktemp("seeing"), truth)
    return run(view, DATA_OF_THINGS, 0, PLAN)


def value(outcome: Outcome, metric: str) -> float:
    return score(outcome.parts[metric])


def test_a_tower_whose_patches_say_what_lies_there_answers_nearly_all(seeing: Outcome) -> None:
    assert min(value(seeing, kind) for kind in ("what", "where", "side")) > 0.85
    assert interval(seeing.parts["gain"]).low > 0.3 and interval(seeing.parts["relations gain"]).low > 0.2
    assert set(seeing.parts) == set(METRICS) and len(seeing.ids) == 60
    assert np.isnan(value(seeing, "count"))  # nobody asked


def test_the_blind_model_scores_what_words_alone_tell(seeing: Outcome) -> None:
    assert abs(value(seeing, "blind") - score(prior(DATA_OF_THINGS)["accuracy"])) < 0.12
    assert compare(seeing.parts["accuracy"], seeing.parts["blind"]).low > 0.3


def test_the_tower_is_the_only_difference() -> None:
    """The language model as it is drawn, and a picture's questions, which do not see each other or the padding."""
    drawn = []
    for features in (5, 9):
        torch.manual_seed(0)
        model = SmallVLM(features, (2, 2), 20, 8, width=16, heads=2)
        drawn.append({name: p for name, p in model.state_dict().items() if not name.startswith("projector.")})
    assert all(torch.equal(drawn[0][name], p) for name, p in drawn[1].items())
    known = [questions(i, 9) for i in range(3)]
    vocabulary = Vocabulary(one for of_picture in known for one in of_picture)
    asked = [encode(of_picture, vocabulary) for of_picture in known]
    model = SmallVLM(6, (SIDE, SIDE), len(vocabulary), vocabulary.longest, width=16, heads=2)
    image = torch.stack([truth(i).flatten(0, 1) for i in range(3)])
    together = model(image, rows_of(asked))
    alone = [encode([one], vocabulary) for one in known[1]]
    apart = torch.cat([model(image[1:2], rows_of([one])) for one in alone])
    first = len(asked[0])
    torch.testing.assert_close(together[first : first + len(apart)], apart)


def test_patches_go_side_by_side_into_fewer_tokens() -> None:
    patches = torch.arange(2 * 5 * 4 * 3.0).view(2, 5, 4, 3)
    assert torch.equal(image_tokens(patches, side=5), patches)
    shuffled = image_tokens(patches, side=3)
    assert shuffled.shape == (2, 3, 2, 12)
    assert torch.equal(
        shuffled[1, 0, 1], torch.cat([patches[1, 0, 2], patches[1, 0, 3], patches[1, 1, 2], patches[1, 1, 3]])
    )
    assert torch.equal(shuffled[0, 2, 0, 6:], torch.zeros(6))  # below the last row there is nothing


def test_pairs_do_not_crowd_out_other_kinds() -> None:
    one = encode([Question("what", "a ?", "b")] * 2 + [Question("side", "c ?", "d")] * 40, Vocabulary([]))
    rng = np.random.default_rng(0)
    drawn = [kind for _ in range(200) for kind in one.some(2, rng).kinds]
    assert 0.35 < drawn.count("what") / len(drawn) < 0.75


def test_what_is_asked_is_made_once_a_benchmark(tmp_path: Path) -> None:
    """With two data sets the questions of one were forgotten as soon as a tower came to the other."""
    made: list[str] = []

    def counted(data: Dataset, name: str) -> Dataset:
        def ask(item: Item, each: int) -> Any:
            made.append(name)
            return item.questions(each)

        return replace(data, name=name, items=[replace(item, question_reader=partial(ask, item)) for item in data])

    sets = [Split(counted(part(2000, 8), name), counted(part(3000, 4), name)) for name in ("one", "other")]
    view: Any = FakeView(tmp_path, truth)
    for _ in range(2):  # towers
        for data in sets:
            run(view, data, 0, replace(PLAN, steps=2))
    assert (made.count("one"), made.count("other")) == (12, 12)


def test_processes_share_the_pictures_that_are_asked_about() -> None:
    """They read the whole test part, and the first then read the thousand that count alone."""
    data = open_dataset("scenes:hard", "test")
    assert VLM_PROBE.shown(data).ids() == some(data, TEST).ids()
    assert len(VLM_PROBE.shown(data)) == TEST < len(data)


def test_scenes_have_questions_and_only_those_that_are_used_are_read() -> None:
    data = open_dataset("scenes:hard", "test")
    assert "vlm-probe" in allowed_tasks(data)
    few = some(data, 3)
    assert few.ids() == ["test-000000", "test-001000", "test-001999"] == [item.id for item in few]
    assert few[1].questions(2) == data[1000].questions(2) and 5 <= len(few[1].questions(2)) <= 10
    with pytest.raises(ConfigError, match="no questions"):
        Item("a", Image.new("RGB", (8, 8))).questions(1)
    with pytest.raises(ConfigError, match="no question about a training picture"):
        fit(torch.zeros(2, 1, 1, 1), [encode([], Vocabulary([]))] * 2, Vocabulary([]))
