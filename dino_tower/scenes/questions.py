"""Questions about the built-in scenes with their answers: what, where, how many, left or right of, touching.

What can be known without the picture is kept out: sides are asked both ways round, touching and not touching alike
often, and a shape that is not there is asked for as well.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dino_tower.scenes.levels import LEVELS
from dino_tower.scenes.scene import Scene, SceneObject

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHOWN = 0.25  # an object of which less shows is not asked about
RELATIONS = ("side", "touching")  # kinds about two objects, to be reported apart
KINDS = ("what", "where", "count", *RELATIONS)


@dataclass(frozen=True)
class Question:
    """kind: one of KINDS; answer: one or two words."""

    kind: str
    text: str
    answer: str


def questions_about(scene: Scene, level: str, seed: int, each: int = 1) -> list[Question]:
    """At most `each` questions of each kind that the scene can answer without doubt, the same for the same seed."""
    draw = random.Random(seed)
    named = dict(_named(scene))
    asked = (
        _what(scene),
        _where(scene, named),
        _count(scene, LEVELS[level].shapes, draw),
        _side(scene, named),
        _touching(scene, named, draw),
    )
    return [question for one in asked for question in draw.sample(one, min(each, len(one)))]


def _named(scene: Scene) -> Iterator[tuple[int, str]]:
    """Position and name of each object that colour and shape tell from every other, and of which enough shows."""
    names = [f"{thing.colour} {thing.shape}" for thing in scene.objects]
    counts = Counter(names)
    for i, name in enumerate(names):
        if counts[name] == 1 and scene.objects[i].visible >= SHOWN:
            yield i, name


def _what(scene: Scene) -> list[Question]:
    """The shape of what has a colour alone, and the colour of what has a shape alone."""
    colours, shapes = (Counter(getattr(thing, word) for thing in scene.objects) for word in ("colour", "shape"))
    shown = [thing for thing in scene.objects if thing.visible >= SHOWN]
    return [
        *(
            Question("what", f"what is the {one.colour} thing ?", one.shape)
            for one in shown
            if colours[one.colour] == 1
        ),
        *(Question("what", f"what colour is the {one.shape} ?", one.colour) for one in shown if shapes[one.shape] == 1),
    ]


def _where(scene: Scene, named: dict[int, str]) -> list[Question]:
    places = [(name, place) for i, name in named.items() if (place := _corner(scene, scene.objects[i]))]
    return [Question("where", f"where is the {name} ?", place) for name, place in places]


def _corner(scene: Scene, thing: SceneObject) -> str:
    """The quarter of the picture that holds the middle of its box; nothing for one near a midline."""
    height, width = scene.image.shape[:2]
    x, y = (thing.box[0] + thing.box[2]) / 2 / width, (thing.box[1] + thing.box[3]) / 2 / height
    if min(abs(x - 0.5), abs(y - 0.5)) < 0.08:
        return ""
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def _count(scene: Scene, shapes: tuple[str, ...], draw: random.Random) -> list[Question]:
    """How many of each shape; a quarter of them of shapes that other scenes have and this one has not."""
    counts = Counter(thing.shape for thing in scene.objects)
    if not counts or max(counts.values()) >= len(NUMBERS) or min(thing.visible for thing in scene.objects) < SHOWN:
        return []
    absent = sorted(set(shapes) - set(counts))
    some = draw.sample(absent, min(len(absent), max(1, round(len(counts) / 3))))
    return [
        Question("count", f"how many times is there a {shape} ?", NUMBERS[counts[shape]])
        for shape in (*sorted(counts), *some)
    ]


def _side(scene: Scene, named: dict[int, str]) -> list[Question]:
    """Every pair stands in the relations both ways round, so that left is right as often as right."""
    return [
        Question("side", f"is the {named[i]} left or right of the {named[j]} ?", word.removesuffix(" of"))
        for i, word, j in scene.relations
        if word in ("left of", "right of") and {i, j} <= set(named)
    ]


def _touching(scene: Scene, named: dict[int, str], draw: random.Random) -> list[Question]:
    """Yes and no alike often, of scenes that have pairs of both sorts; others are not asked."""
    touching = {(i, j) for i, word, j in scene.relations if word == "touching" and {i, j} <= set(named)}
    apart = [(i, j) for i in named for j in named if i != j and (i, j) not in touching]
    few = min(len(touching), len(apart))
    pairs = [("yes", pair) for pair in draw.sample(sorted(touching), few)]
    pairs += [("no", pair) for pair in draw.sample(apart, few)]
    return [Question("touching", f"does the {named[i]} touch the {named[j]} ?", word) for word, (i, j) in pairs]
