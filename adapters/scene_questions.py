"""Questions about the built-in scenes with their answers: what, where, how many, left or right of, touching.

What can be known without the picture is kept out: sides are asked both ways round, touching and not touching alike
often, and a shape that is not there is asked for as well.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.scenes import LEVELS, Scene, SceneObject, make_scene

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


def questions_about(scene: Scene, level: str, seed: int) -> list[Question]:
    """One question of each kind that the scene can answer without doubt, the same for the same seed."""
    draw = random.Random(seed)
    named = dict(_named(scene))
    asked = [
        _what(scene, draw),
        _where(scene, named, draw),
        _count(scene, LEVELS[level].shapes, draw),
        _side(scene, named, draw),
        _touching(scene, named, draw),
    ]
    return [question for question in asked if question is not None]


def write_scene_questions(
    folder: str | Path,
    count: int,
    level: str = "hard",
    split: str = "train",
    blind: bool = False,
    size: int | None = None,
) -> Path:
    """Pictures and talk.json, in LLaVA's format, of `count` scenes; returns the JSON file.

    A scene whose questions are several becomes several conversations: a later answer cannot lean on an earlier one.
    Each has its "kind". blind: the same questions without pictures, the control of what words alone can tell.
    Raises ConfigError for a folder that is not empty, and as `make_scene` does.
    """
    home = Path(folder)
    if home.exists() and any(home.iterdir()):
        raise ConfigError(f"{home} is not empty; name a new folder")
    home.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(count):
        scene = make_scene(level, index, split, size)
        picture = f"{index:06d}.png"
        if not blind:
            Image.fromarray(scene.image).save(home / picture)
        for question in questions_about(scene, level, index):
            turns = [
                {"from": "human", "value": question.text if blind else f"<image>\n{question.text}"},
                {"from": "gpt", "value": question.answer},
            ]
            shown = {} if blind else {"image": picture}
            entry = {"id": f"{split} {index} {question.kind}", "kind": question.kind, "conversations": turns}
            entries.append(entry | shown)
    file = home / "talk.json"
    file.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return file


def _named(scene: Scene) -> Iterator[tuple[int, str]]:
    """Position and name of each object that colour and shape tell from every other, and of which enough shows."""
    names = [f"{thing.colour} {thing.shape}" for thing in scene.objects]
    counts = Counter(names)
    for i, name in enumerate(names):
        if counts[name] == 1 and scene.objects[i].visible >= SHOWN:
            yield i, name


def _what(scene: Scene, draw: random.Random) -> Question | None:
    counts = Counter(thing.colour for thing in scene.objects)
    alone = [thing for thing in scene.objects if counts[thing.colour] == 1 and thing.visible >= SHOWN]
    if not alone:
        return None
    thing = draw.choice(alone)
    return Question("what", f"what is the {thing.colour} thing ?", thing.shape)


def _where(scene: Scene, named: dict[int, str], draw: random.Random) -> Question | None:
    places = [(name, place) for i, name in named.items() if (place := _corner(scene, scene.objects[i]))]
    if not places:
        return None
    name, place = draw.choice(places)
    return Question("where", f"where is the {name} ?", place)


def _corner(scene: Scene, thing: SceneObject) -> str:
    """The quarter of the picture that holds the middle of its box; nothing for one near a midline."""
    height, width = scene.image.shape[:2]
    x, y = (thing.box[0] + thing.box[2]) / 2 / width, (thing.box[1] + thing.box[3]) / 2 / height
    if min(abs(x - 0.5), abs(y - 0.5)) < 0.08:
        return ""
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def _count(scene: Scene, shapes: tuple[str, ...], draw: random.Random) -> Question | None:
    """How many of a shape: one in four times of a shape that some scenes have and this one has not."""
    counts = Counter(thing.shape for thing in scene.objects)
    if not counts or max(counts.values()) >= len(NUMBERS) or min(thing.visible for thing in scene.objects) < SHOWN:
        return None
    absent = sorted(set(shapes) - set(counts))
    shape = draw.choice(absent if absent and draw.random() < 0.25 else sorted(counts))
    return Question("count", f"how many times is there a {shape} ?", NUMBERS[counts[shape]])


def _side(scene: Scene, named: dict[int, str], draw: random.Random) -> Question | None:
    """Every pair stands in the relations both ways round, so that left is right as often as right."""
    pairs = [(i, word, j) for i, word, j in scene.relations if word in ("left of", "right of") and {i, j} <= set(named)]
    if not pairs:
        return None
    i, word, j = draw.choice(pairs)
    return Question("side", f"is the {named[i]} left or right of the {named[j]} ?", word.removesuffix(" of"))


def _touching(scene: Scene, named: dict[int, str], draw: random.Random) -> Question | None:
    """Yes and no alike often over scenes that have pairs of both sorts; others are not asked."""
    touching = {(i, j) for i, word, j in scene.relations if word == "touching" and {i, j} <= set(named)}
    apart = [(i, j) for i in named for j in named if i != j and (i, j) not in touching]
    if not touching or not apart:
        return None
    yes = draw.random() < 0.5
    i, j = draw.choice(sorted(touching) if yes else apart)
    return Question("touching", f"does the {named[i]} touch the {named[j]} ?", "yes" if yes else "no")
