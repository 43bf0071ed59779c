"""Words for a scene: relations between its objects, phrases that name exactly one of them, and a caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

Box = tuple[int, int, int, int]
Relation = tuple[int, str, int]
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "touching": "touching"}
# The ways to name an object, shortest first.
_FORMS = (
    ("shape",),
    ("colour", "shape"),
    ("texture", "shape"),
    ("size", "shape"),
    ("texture", "colour", "shape"),
    ("size", "colour", "shape"),
    ("size", "texture", "shape"),
    ("size", "texture", "colour", "shape"),
)
_SHOWN = 0.25  # an object of which less shows is in no phrase


class Thing(Protocol):
    """What words need of an object (dino_tower.scenes.SceneObject)."""

    @property
    def instance(self) -> int: ...
    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def texture(self) -> str: ...
    @property
    def box(self) -> Box: ...
    @property
    def from_kind(self) -> bool: ...
    @property
    def visible(self) -> float: ...


def relations(objects: Sequence[Thing], instances: np.ndarray) -> tuple[Relation, ...]:
    """Every relation that clearly holds, both ways round: (i, "left of", j) with positions in `objects`.

    A side is named when the boxes' centres differ by more than the mean extent along that axis and twice as much as
    along the other; two objects touch when a pixel of one is a neighbour (of 4) of one of the other's.
    """
    found: list[Relation] = []
    touching = _touching(instances)
    for i, a in enumerate(objects):
        for j, b in enumerate(objects[:i]):
            dx, dy = (b.box[k] + b.box[k + 2] - a.box[k] - a.box[k + 2] for k in (0, 1))  # twice the difference
            wide, high = (b.box[k + 2] - b.box[k] + a.box[k + 2] - a.box[k] for k in (0, 1))  # twice the mean extent
            words = []
            if abs(dx) > max(2 * abs(dy), wide):
                words.append("left of" if dx > 0 else "right of")
            if abs(dy) > max(2 * abs(dx), high):
                words.append("above" if dy > 0 else "below")
            if (a.instance, b.instance) in touching:
                words.append("touching")
            for word in words:
                found += [(i, word, j), (j, OPPOSITE[word], i)]
    return tuple(found)


def _touching(instances: np.ndarray) -> set[tuple[int, int]]:
    pairs: set[tuple[int, int]] = set()
    for a, b in ((instances[:, 1:], instances[:, :-1]), (instances[1:], instances[:-1])):
        meet = (a != b) & (a > 0) & (b > 0)
        codes = np.unique(a[meet].astype(np.int32) * 256 + b[meet])
        pairs |= {(int(c) >> 8, int(c) & 255) for c in codes} | {(int(c) & 255, int(c) >> 8) for c in codes}
    return pairs


def phrases(objects: Sequence[Thing], found: Sequence[Relation]) -> tuple[tuple[str, Box], ...]:
    """(text, box) pairs, each text true of exactly one object: by its own looks, then by a relation.

    "the red ring" where one object is so; "the ring left of the blue square" where "the ring" fits several and "the
    blue square" one. Objects of which less than a quarter shows have no phrase, but others are not mistaken for them.
    """
    names = _own_names(objects)
    out = [(f"the {name}", objects[i].box) for i, name in names.items() if objects[i].visible >= _SHOWN]
    for i, word, j in found:
        if j not in names or min(objects[i].visible, objects[j].visible) < _SHOWN:
            continue
        fit = [k for k, relation, other in found if (relation, other) == (word, j)]
        alike = [k for k in fit if objects[k].shape == objects[i].shape]
        several = sum(thing.shape == objects[i].shape for thing in objects) > 1
        if several and len(alike) == 1:
            out.append((f"the {objects[i].shape} {word} the {names[j]}", objects[i].box))
    return tuple(out)


def _own_names(objects: Sequence[Thing]) -> dict[int, str]:
    """The shortest name that fits one object alone, for every object that has one."""
    names: dict[int, str] = {}
    for form in _FORMS:
        texts = [" ".join(_word(thing, part) for part in form) for thing in objects]
        counts = Counter(texts)
        for i, text in enumerate(texts):
            if counts[text] == 1:
                names.setdefault(i, text)
    return names


def _word(thing: Thing, part: str) -> str:
    return getattr(thing, part)


def caption(objects: Sequence[Thing], relations_of: Callable[[], Sequence[Relation]]) -> str:
    """One sentence: what is where for scenes with relations, else how many of each class of the kind there are.

    relations_of: gives the relations, which cost more than the sentence and are looked for where it needs them.
    """
    if any(not thing.from_kind for thing in objects) and sum(thing.from_kind for thing in objects) > 1:
        return _count_caption(objects)
    found = relations_of()
    texts = [_with_article(f"{thing.size} {thing.texture} {thing.colour} {thing.shape}") for thing in objects]
    said: set[int] = set()
    parts = []
    for i, word, j in sorted(found, key=lambda relation: relation[1] != "touching"):
        if j < i and not {i, j} <= said:
            parts.append(f"{texts[i]} {word} {texts[j]}")
            said |= {i, j}
    parts += [text for i, text in enumerate(texts) if i not in said]
    return "; ".join(parts)


def _count_caption(objects: Sequence[Thing]) -> str:
    textured = any(thing.texture != "plain" for thing in objects)
    of_kind = [thing for thing in objects if thing.from_kind]
    counts = Counter(f"{thing.texture if textured else thing.colour} {thing.shape}" for thing in of_kind)
    rest = len(objects) - len(of_kind)
    parts = [f"{n} {name}" if n == 1 else f"{n} {_plural(name)}" for name, n in sorted(counts.items())]
    return " and ".join(parts) + f" among {rest} other shapes"


def _plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"


def _with_article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
