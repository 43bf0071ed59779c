"""What every reader hands out: a data set of items that cost nothing until their pixels are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.images import ImageInput, UnreadableImage, image_size, read_image
from dino_tower.label_pictures import VOID as VOID
from dino_tower.scenes.questions import Question

OFFERS = (
    "labels", "masks", "instances", "boxes", "video", "pairs", "depth", "camera", "queries", "copies", "captions",
    "phrases", "questions",
)  # fmt: skip

Pixels = Callable[[], np.ndarray]


class NoSplit(ConfigError):
    """The data has no such part, which is no fault of it: anything else that is wrong with a part is one."""


@dataclass(frozen=True)
class Box:
    """(left, top, right, bottom) in pixels, right and bottom excluded; `label` indexes `Dataset.regions`."""

    corners: tuple[float, float, float, float]
    label: int
    difficult: bool = False  # marked difficult (VOC) or as a crowd (COCO): neither found nor missed


@dataclass(frozen=True)
class Pair:
    """The second picture of a pair; row i of both [N, 2] arrays (x, y in pixels) is one keypoint that both show."""

    target: Item
    points: np.ndarray
    target_points: np.ndarray
    box: tuple[float, float, float, float]  # of the object in the first picture
    target_box: tuple[float, float, float, float]  # PCK is measured in its longer side


@dataclass(frozen=True)
class Relevance:
    """What a query should find: places in `Dataset.database`. A copy's originals are `easy`."""

    easy: tuple[int, ...]
    hard: tuple[int, ...] = ()
    junk: tuple[int, ...] = ()


@dataclass(frozen=True)
class Item:
    """One picture, or one video of `frames`, with what is known about it. Nothing is decoded before it is asked for.

    `payload` is anything `read_image` takes, or a function without arguments that gives it. The readers of pixels are
    called by `mask()`, `instances()` and `depth()`, which check their size against the picture's.
    """

    id: str
    payload: ImageInput | Callable[[], ImageInput]
    label: int | None = None
    mask_reader: Pixels | None = None
    instance_reader: Pixels | None = None
    depth_reader: Pixels | None = None
    boxes: tuple[Box, ...] | None = None
    captions: tuple[str, ...] = ()
    phrases: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()  # text, corners of its box
    frames: tuple[Item, ...] = ()
    pair: Pair | None = None
    query: Relevance | None = None
    camera: tuple[float, float, float, float] | None = None  # fx, fy, cx, cy in pixels, of the depth map
    question_reader: Callable[[int], Sequence[Question]] | None = None  # at most so many of each kind

    def image(self) -> Image.Image:
        """RGB, upright. Raises UnreadableImage."""
        return read_image(self.payload() if callable(self.payload) else self.payload)

    @property
    def where(self) -> str:
        """Its file, for messages; its id where it is none."""
        return str(self.payload) if isinstance(self.payload, (str, Path)) else self.id

    def size(self) -> tuple[int, int]:
        """(width, height) of the upright picture, from the header. Raises UnreadableImage."""
        return image_size(self.payload() if callable(self.payload) else self.payload)

    def mask(self) -> np.ndarray:
        """uint8 [H, W] class ids, VOID where nothing counts. Raises ConfigError: no mask, another size, a wrong id."""
        return self._pixels("mask", self.mask_reader)

    def instances(self) -> np.ndarray:
        """uint8 or uint16 [H, W]: 0 background, VOID (255) does not count, any other value one object."""
        return self._pixels("instance mask", self.instance_reader)

    def depth(self) -> np.ndarray:
        """float32 [H, W] metres, 0 where it was not measured."""
        return self._pixels("depth map", self.depth_reader)

    def questions(self, each: int) -> Sequence[Question]:
        """At most `each` questions of each kind, with their answers, always the same. ConfigError: none are known."""
        if self.question_reader is None:
            raise ConfigError(f"{self.id}: no questions")
        return self.question_reader(each)

    def _pixels(self, kind: str, reader: Pixels | None) -> np.ndarray:
        if reader is None:
            raise ConfigError(f"{self.id}: no {kind}")
        pixels = reader()
        try:
            width, height = self.size()
        except UnreadableImage as error:
            raise ConfigError(f"{self.id}: {error.reason}") from None
        if pixels.shape != (height, width):
            found = f"{pixels.shape[1]} x {pixels.shape[0]}" if pixels.ndim == 2 else f"of shape {pixels.shape}"
            raise ConfigError(f"{self.id}: the {kind} is {found}, the picture {width} x {height} pixels")
        return pixels


class LazyItems(Sequence[Item]):
    """Items made when asked for: a million pictures cost one function, not a million objects.

    name: their ids, where these are known without making an item.
    """

    def __init__(self, count: int, make: Callable[[int], Item], name: Callable[[int], str] | None = None) -> None:
        self.length, self.make, self.name = count, make, name

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> Item, slice -> list of them
        if isinstance(index, slice):
            return [self.make(place) for place in range(*index.indices(self.length))]
        if not -self.length <= index < self.length:
            raise IndexError(index)
        return self.make(index % self.length)


@dataclass(frozen=True)
class Dataset:
    """One split of one data set. `has`: which of OFFERS its items carry; `chosen_by`: where the split comes from.

    `Item.label` indexes `classes`; what masks hold and boxes are labelled with indexes `regions`.
    """

    name: str
    kind: str
    split: str
    chosen_by: str
    items: Sequence[Item]
    has: frozenset[str]
    classes: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    whole: Dataset | None = None  # of a part: the set it is a part of,
    places: tuple[int, ...] = ()  # and which of its items these are

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def ids(self) -> list[str]:
        """Of all items, which are not made for it where they have names beforehand."""
        if isinstance(self.items, LazyItems) and self.items.name is not None:
            return [self.items.name(index) for index in range(len(self))]
        return [item.id for item in self]

    @cached_property
    def queries(self) -> list[Item]:
        """Of a retrieval or copy set."""
        return [item for item in self.items if item.query is not None]

    @cached_property
    def database(self) -> list[Item]:
        """What is searched: every item that is not a query, in order."""
        return [item for item in self.items if item.query is None]

    def part(self, places: Sequence[int], name: str) -> Dataset:
        """Some of the items, which share what is known about the whole (their features, for one)."""
        return replace(
            self, split=f"{self.split}/{name}", items=[self.items[place] for place in places],
            whole=self.whole or self, places=tuple(self.places[p] if self.whole else p for p in places),
        )  # fmt: skip

    def describe(self) -> str:
        """One line for people."""
        kinds = "".join(
            f", {len(names)} {kind}"
            for kind, names in (("classes", self.classes), ("region classes", self.regions))
            if names
        )
        offers = ", ".join(name for name in OFFERS if name in self.has) or "pictures only"
        return f"{self.name} ({self.kind}), {self.split}: {len(self)} items{kinds}; {offers}; split by {self.chosen_by}"

    def check(self, count: int = 8) -> None:
        """Read `count` items, evenly spread, with everything they carry, so that bad data is known before work starts.

        Raises:
            ConfigError: the first thing that cannot be read, one line.
        """
        for place in np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)).tolist():
            item = self.items[place]
            for one in (item.frames[:1] + item.frames[-1:]) or (item,):
                try:
                    one.image()
                except UnreadableImage as error:
                    raise ConfigError(f"{one.where}: {error.reason}") from None
                for kind in ("mask", "instance", "depth"):
                    if getattr(one, f"{kind}_reader") is not None:
                        getattr(one, "instances" if kind == "instance" else kind)()
