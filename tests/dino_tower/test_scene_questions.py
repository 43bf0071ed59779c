"""Questions about scenes: true of the picture, and not to be guessed from the words."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from scipy.ndimage import binary_dilation

from dino_tower.scenes import Scene, make_scene
from dino_tower.scenes.questions import KINDS, NUMBERS, Question, questions_about

COUNT = 150


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, list[Question]]]:
    """Scenes of the level with relations, and what is asked of each."""
    scenes = [make_scene("hard", index) for index in range(COUNT)]
    return [(scene, questions_about(scene, "hard", index)) for index, scene in enumerate(scenes)]


def test_answers_are_true(asked: list[tuple[Scene, list[Question]]]) -> None:
    """Checked against the labels in another way than they were made."""
    seen = Counter(question.kind for _, questions in asked for question in questions)
    assert set(seen) == set(KINDS)
    assert min(seen.values()) > COUNT / 2
    for scene, questions in asked:
        called = {f"{thing.colour} {thing.shape}": thing for thing in scene.objects}
        for question in questions:
            text = question.text
            if text.startswith("what colour"):
                (thing,) = [one for one in scene.objects if text == f"what colour is the {one.shape} ?"]
                assert question.answer == thing.colour
            elif question.kind == "what":
                (thing,) = [one for one in scene.objects if f"the {one.colour} thing" in text]
                assert question.answer == thing.shape
            elif question.kind == "count":
                shape = text.split()[-2]
                assert NUMBERS.index(question.answer) == sum(thing.shape == shape for thing in scene.objects)
            elif question.kind == "where":
                box = called[text.removeprefix("where is the ").removesuffix(" ?")].box
                middle = scene.image.shape[0] / 2
                high, wide = (box[1] + box[3]) / 2 < middle, (box[0] + box[2]) / 2 < middle
                assert question.answer == f"{'top' if high else 'bottom'} {'left' if wide else 'right'}"
            elif question.kind == "side":
                one, other = (part.strip() for part in text[len("is the ") : -2].split(" left or right of the "))
                centres = [called[name].box[0] + called[name].box[2] for name in (one, other)]
                assert (question.answer == "left") == (centres[0] < centres[1])
            else:
                one, other = (called[name] for name in text[len("does the ") : -2].split(" touch the "))
                near = binary_dilation(scene.instances == one.instance) & (scene.instances == other.instance)
                assert (question.answer == "yes") == bool(near.any())


def test_words_alone_do_not_tell(asked: list[tuple[Scene, list[Question]]]) -> None:
    """The commonest answer of a kind is right hardly more often than chance; of counts most are one or none."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for index, (scene, _) in enumerate(asked):
        for question in questions_about(scene, "hard", index, each=99):
            answers[question.kind][question.answer] += 1
    for kind, most in {"side": 0.501, "touching": 0.501, "where": 0.35, "what": 0.25, "count": 0.65}.items():
        assert answers[kind].most_common(1)[0][1] / answers[kind].total() < most, (kind, answers[kind])
