"""What is asked of one picture: phrases, the regions they may mean, and those they do mean.

Legend: R regions of a picture, Q phrases; boxes (x0, y0, x1, y1) in pixels of the picture, x1 and y1 excluded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.boxes import box_iou
from dino_tower.eval.datasets.base import Item
from dino_tower.images import UnreadableImage

TRUTHS = ("any", "merged")
SAME = 0.99  # overlap from which a phrase's box is one of the picture's: the two files may round differently
SPATIAL, UNSEEN = "spatial", "unseen"  # tags of phrases
_SPATIAL_WORDS = re.compile(r"\b(left of|right of|above|below|touching|under|behind|in front of|next to)\b")
EVERY = 5  # one composition of so many is kept from training


@dataclass(frozen=True)
class Query:
    """One phrase. truth: places in `Grounded.regions` that it means; pool: those it is chosen from, truth included."""

    text: str
    truth: tuple[int, ...]
    pool: tuple[int, ...]
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Grounded:
    """One picture: its (width, height) in pixels, its regions [R, 4] float64 and what is asked of it."""

    id: str
    size: tuple[int, int]
    regions: Tensor
    queries: tuple[Query, ...]


def ground(
    item: Item, truth: str = "any", names: Sequence[str] = (), unseen: frozenset[str] = frozenset(),
    class_names: bool = False,
) -> Grounded:  # fmt: skip
    """The phrases of an item, each once however often it is said, and the boxes to choose from.

    Regions are the item's boxes without the difficult ones, then boxes that only phrases have.
    truth: what a phrase with several boxes means. "any": each of them is right (MDETR's any-box). "merged": the
    smallest box around them is right and takes their place among the choices (Flickr30k Entities' merged boxes).
    names: `Dataset.regions`, what boxes are labelled with. unseen: those of them that are kept from training; a phrase
    that names or means one is tagged "unseen". class_names: ask for the name of every box's class, too.
    Raises ConfigError for a truth that does not exist, a box outside the picture and class names without names.
    """
    if truth not in TRUTHS:
        raise unknown("truth", truth, TRUTHS)
    if class_names and not names:
        raise ConfigError(f"{item.id}: class names as phrases need the names of the classes")
    try:
        size = item.size()
    except UnreadableImage as error:
        raise ConfigError(f"{item.id}: {error.reason}") from None
    usable = [box for box in item.boxes or () if not box.difficult]
    boxes = [_inside(box.corners, size, item.id) for box in usable]
    labels = [names[box.label] if names else "" for box in usable]
    asked: dict[str, list[int]] = {}
    for text, corners in item.phrases:
        words, box = " ".join(text.split()).lower(), _inside(corners, size, item.id)
        place = _place(box, boxes)
        if place == len(boxes):
            boxes.append(box)
            labels.append("")
        if words and place not in asked.setdefault(words, []):
            asked[words].append(place)
    for place, label in enumerate(labels if class_names else ()):
        if label and place not in asked.setdefault(label.lower(), []):
            asked[label.lower()].append(place)
    choices, queries = range(len(boxes)), []
    for words, right in asked.items():
        pool, means = tuple(choices), tuple(sorted(right))
        if truth == "merged" and len(right) > 1:
            both = torch.tensor([boxes[i] for i in right], dtype=torch.float64)
            boxes.append(tuple(torch.cat([both[:, :2].amin(0), both[:, 2:].amax(0)]).tolist()))
            means, pool = (len(boxes) - 1,), (*(i for i in choices if i not in right), len(boxes) - 1)
        tags = {SPATIAL} if is_spatial(words) else set()
        tags |= {UNSEEN} if any(one in words or one in {labels[i] for i in right} for one in unseen) else set()
        queries.append(Query(words, means, pool, frozenset(tags)))
    return Grounded(item.id, size, torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), tuple(queries))


def is_spatial(text: str) -> bool:
    """Does the phrase say where something is relative to something else? Scored apart: looks alone do not answer it."""
    return _SPATIAL_WORDS.search(text) is not None


def unseen_compositions(names: Iterable[str]) -> frozenset[str]:
    """The two-word classes ("red ring") to keep from training: one of five, spread evenly.

        number of the first word + number of the second is a multiple of 5

    Every word stays in training, in other company; what is judged is whether the two are put together anew.
    """
    pairs = [name.split() for name in names if len(name.split()) == 2]
    first, second = ({word: i for i, word in enumerate(dict.fromkeys(pair[k] for pair in pairs))} for k in (0, 1))
    return frozenset(f"{a} {b}" for a, b in pairs if (first[a] + second[b]) % EVERY == 0)


def without(picture: Grounded, tag: str) -> Grounded:
    """The picture with no phrase of this tag, and with none of what these phrases mean among the choices."""
    gone = {i for query in picture.queries if tag in query.tags for i in query.truth}
    kept = tuple(
        replace(query, pool=tuple(i for i in query.pool if i not in gone or i in query.truth))
        for query in picture.queries
        if tag not in query.tags
    )
    return replace(picture, queries=kept)


def apart(train: Sequence[Grounded], test: Sequence[Grounded]) -> None:
    """Raises ConfigError if a picture is trained on and judged, or if either part asks for nothing."""
    both = {picture.id for picture in train} & {picture.id for picture in test}
    if both:
        raise ConfigError(f"grounding: {len(both)} pictures are in train and in test, the first: {min(both)}")
    for part, pictures in (("train", train), ("test", test)):
        if not any(picture.queries for picture in pictures):
            raise ConfigError(f"grounding: none of the {len(pictures)} pictures of {part} has a phrase with its box")


def _inside(corners: Sequence[float], size: tuple[int, int], where: str) -> tuple[float, ...]:
    """The corners cut off at the picture. Raises ConfigError if nothing is left."""
    left, top, right, bottom = (float(v) for v in corners)
    box = (max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1])))
    if not (box[0] < box[2] and box[1] < box[3]):
        shown = ", ".join(f"{v:g}" for v in corners)
        raise ConfigError(f"{where}: box ({shown}) has no area inside the picture of {size[0]} x {size[1]} pixels")
    return box


def _place(box: tuple[float, ...], boxes: Sequence[tuple[float, ...]]) -> int:
    """Which of the boxes this one is; their number if it is none of them."""
    if not boxes:
        return 0
    overlaps = box_iou(torch.tensor(box), torch.tensor(boxes))
    return int(overlaps.argmax()) if float(overlaps.max()) >= SAME else len(boxes)
