"""What every kind of source hands out: samples that can be listed without decoding and decoded one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dino_tower.images import ImageInput, read_sized
from dino_tower.sources.strings import SharedArrays

NO_LABEL = -1
BLOCK = 1 << 20


@dataclass(frozen=True)
class SourceOptions:
    """How sources are read (`--source.*`). Columns left None are found by their type or usual name."""

    streaming: bool = False  # read in long runs instead of at random places: for tar: shards and Hub parquet
    window: int = 4096  # a stream is shuffled inside windows of this many samples
    image: str | None = None  # column (list, hf:) or member extension (tar:) of the image
    label: str | None = None
    caption: str | None = None
    split: str | None = None  # read this split, whatever for; "all": do not look for train and test sub-folders
    subset: str | None = None  # the configuration of a Hub dataset that has several
    weights: tuple[float, ...] = ()  # one for each --data: its share of what is drawn
    max_samples: int | None = None  # the first so many of a seeded permutation


@dataclass(frozen=True)
class Sample:
    """One undecoded picture. `payload` is anything `read_image` takes, or a function without arguments giving that.

    `id` is unique in its source and lets a person find the file; `label` indexes the source's `classes`; `text` is the
    caption or a function that reads it (pretraining never asks for one), `more` gives further texts, if there are any.
    """

    payload: ImageInput | Callable[[], ImageInput]
    id: str
    label: int | None = None
    text: str | Callable[[], str | None] | None = None
    more: Callable[[], Sequence[str]] | None = None

    @property
    def caption(self) -> str | None:
        """What the data says about the picture."""
        return self.text() if callable(self.text) else self.text

    @property
    def texts(self) -> tuple[str, ...]:
        """All that the data says about the picture, each once: the caption, then what `more` gives; none is empty."""
        found = (self.caption, *(self.more() if self.more is not None else ()))
        return tuple(dict.fromkeys(text.strip() for text in found if text and text.strip()))

    def image(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Decode: PIL RGB as `dino_tower.images.read_image` gives it. Raises UnreadableImage."""
        return self.sized(at_least)[0]

    def sized(self, at_least: tuple[int, int] | None = None) -> tuple[Image.Image, tuple[int, int]]:
        """The picture, perhaps decoded at a reduced scale that covers `at_least`, and its full (width, height)."""
        payload = self.payload() if callable(self.payload) else self.payload
        return read_sized(payload, at_least=at_least)


class Source(ABC):
    """A fixed sequence of samples, cheap to pickle and small in memory; index i is the same sample in every process.

    `stretches` is None where any order costs the same. Otherwise it holds the lengths of consecutive stretches (shards
    or row groups) that are best read one after the other: the source is a stream.
    """

    name: str
    classes: tuple[str, ...] | None = None
    stretches: np.ndarray | None = None
    window: int = SourceOptions.window
    has_splits: bool = False  # whether the data itself keeps a test split apart

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; nothing is decoded. Raises UnreadableImage when its file has gone."""

    def sample_id(self, index: int) -> str:
        """The id of sample `index` without reading it; also names a sample that cannot be read."""
        return self[index].id

    def labels(self) -> np.ndarray | None:
        """int64 [N], NO_LABEL where there is none, without decoding a picture; None when nothing is labelled."""
        return None

    def describe(self) -> str:
        """One line for people."""
        kinds = f", {len(self.classes)} classes" if self.classes else ""
        stream = ", streamed" if self.stretches is not None else ""
        return f"{self.name}: {len(self)} images{kinds}{stream}"

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class Part(Source):
    """Some samples of another source, e.g. its test half. The stretches of a stream are kept."""

    def __init__(self, whole: Source, indices: np.ndarray, name: str) -> None:
        self.whole, self.name = whole, name
        self.classes, self.has_splits, self.window = whole.classes, whole.has_splits, whole.window
        if whole.stretches is not None:
            bounds = np.concatenate([[0], np.cumsum(whole.stretches)])
            indices = np.sort(indices)
            lengths = np.diff(np.searchsorted(indices, bounds))
            self.stretches = lengths[lengths > 0]
        self._shared = SharedArrays(indices)

    @property
    def indices(self) -> np.ndarray:
        """int64 [N] into the whole."""
        return self._shared.arrays[0]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[int(self.indices[index])]

    def sample_id(self, index: int) -> str:
        return self.whole.sample_id(int(self.indices[index]))

    def labels(self) -> np.ndarray | None:
        labels = self.whole.labels()
        return None if labels is None else labels[self.indices]


class LabelsBuilder:
    """Collects labels as they are met and numbers the classes at the end: in order of value, else of the alphabet."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.labels = array("i")

    def extend(self, values: Iterable[str | None]) -> None:
        """Add labels; None and "" are none."""
        numbers = self.numbers
        self.labels.extend([numbers.setdefault(value, len(numbers)) if value else NO_LABEL for value in values])

    def done(self) -> tuple[tuple[str, ...] | None, SharedArrays | None]:
        """Class names and int32 [N] places among them; (None, None) when no label was met."""
        if not self.numbers:
            return None, None
        met = list(self.numbers)
        classes = sorted(met, key=class_order)
        place = {name: index for index, name in enumerate(classes)}
        table = np.array([place[name] for name in met] + [NO_LABEL], np.int32)
        labels = np.frombuffer(self.labels, np.int32)
        for start in range(0, len(labels), BLOCK):  # in place: one array of millions is enough
            labels[start : start + BLOCK] = table[labels[start : start + BLOCK]]
        return tuple(classes), SharedArrays(labels)


def label_at(labels: SharedArrays | None, index: int) -> int | None:
    """The label of one sample, or None."""
    label = NO_LABEL if labels is None else int(labels.arrays[0][index])
    return None if label == NO_LABEL else label


def all_labels(labels: SharedArrays | None) -> np.ndarray | None:
    """int64 [N], or None."""
    return None if labels is None else labels.arrays[0].astype(np.int64)


def class_order(name: str) -> tuple:
    """Sorts "2" before "10", and numbers before words."""
    return (0, int(name), name) if name.lstrip("-").isascii() and name.lstrip("-").isdigit() else (1, 0, name)


def labels_among(source: Source, classes: Sequence[str]) -> np.ndarray:
    """`source.labels()` renumbered to another list of class names, NO_LABEL for names not in it: int64 [N].

    Two splits number their classes by what each of them holds; this makes them agree.
    """
    labels = source.labels()
    if labels is None or source.classes is None:
        return np.full(len(source), NO_LABEL, np.int64)
    place = {name: index for index, name in enumerate(classes)}
    table = np.array([place.get(name, NO_LABEL) for name in source.classes] + [NO_LABEL], np.int64)
    return table[labels]
