"""Pictures with what is to be learned about them: class labels, masks of classes, depth.

What SOURCE may be, by task:

    classify   every SOURCE with labels: class folders, hf: and lists with a label column, tar:, scenes
    segment    scenes[:LEVEL] · a folder with images/, masks/ and classes.txt · masks:IMAGES,MASKS,CLASSES ·
               hf:, a list or tar: with --target.column, whose masks are pictures
    depth      a folder with rgb/ and depth/, or NAME_rgb.* beside NAME_depth.png (millimetres in 16 bits; index.json
               may say otherwise)

Splits are those of the SOURCE (train/ and val/ or test/ folders, MASKS_train.txt and MASKS_val.txt; of one list alone,
the other split is what it does not name), else by hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino_tower.adapters.label_files import DepthFiles, MaskFiles, depth_units, read_classes, read_lines
from dino_tower.adapters.settings import TargetConfig
from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.run.entry import say
from dino_tower.scenes import semantic_names
from dino_tower.sources import NO_LABEL, Part, Source, SourceOptions, labels_among, open_source, open_sources
from dino_tower.sources.generated import SceneSource
from dino_tower.sources.opening import HELD_OUT, hash_split

ReadLabel = Callable[[int], Any]
IMAGES, MASKS = ("images", "imgs"), ("masks", "labels", "annotations")
RGB, DEPTH = ("rgb", "images"), ("depth",)
CLASS_LISTS = ("classes.txt", "classes.json")
LISTS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
_OTHER = {"train": "test", "test": "train"}


@dataclass(frozen=True)
class Examples:
    """One split. `label(i)` is an int, a mask uint8 [H, W] (255 does not count) or depth float32 [H, W] in metres."""

    pictures: Source
    read: ReadLabel
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, index: int) -> Image.Image:
        """RGB. Raises UnreadableImage."""
        return self.pictures[index].image()

    def label(self, index: int, picture: Image.Image) -> Any:
        """What is to be learned; ConfigError for one of another size than its picture, or that cannot be read."""
        label = self.read(index)
        if isinstance(label, np.ndarray) and label.shape != (picture.height, picture.width):
            name = self.pictures.sample_id(index)
            found = " x ".join(map(str, label.shape[::-1]))
            raise ConfigError(
                f"{name}: its label is {found}, the picture {picture.width} x {picture.height} pixels; "
                "they must have one size"
            )
        return label

    def check(self, count: int = 8) -> None:
        """Read some, evenly spread, before anything is written. Raises ConfigError for the first that cannot be."""
        for index in np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)).tolist():
            try:
                picture = self.picture(index)
            except UnreadableImage:
                continue  # training puts up with some of these, and counts them
            self.label(index, picture)


@dataclass(frozen=True)
class KnownLabels:
    """Class numbers, one a picture."""

    labels: np.ndarray

    def __call__(self, index: int) -> int:
        return int(self.labels[index])


@dataclass(frozen=True)
class SceneMasks:
    """The masks of built-in scenes."""

    scenes: SceneSource

    def __call__(self, index: int) -> np.ndarray:
        return self.scenes.scene(index).semantic


@dataclass(frozen=True)
class Chosen:
    """Labels of some places of a whole."""

    whole: ReadLabel
    places: np.ndarray

    def __call__(self, index: int) -> Any:
        return self.whole(int(self.places[index]))


def open_examples(
    task: str, data: Sequence[str], options: SourceOptions, target: TargetConfig
) -> tuple[Examples, Examples]:
    """(train, test) of a SOURCE for a task; the classes are those of train.

    Raises ConfigError, one line, for a source without what the task needs, and for classes that only test has.
    """
    if task == "classify":
        return _labelled(data, options)
    if len(data) != 1:
        raise ConfigError(f"task {task} takes one --data, not {len(data)}")
    spelling = data[0]
    if task == "depth":
        train, test = _depth(spelling, options, target)
    elif spelling.split(":")[0] == "scenes" and not Path(spelling).is_dir():
        train, test = (_scene_masks(spelling, options, split) for split in ("train", "test"))
    elif target.column is not None:
        train, test = (_mask_column(spelling, options, target, split) for split in ("train", "test"))
    else:
        train, test = _mask_folders(spelling, options)
    for part in (train, test):
        part.check()
    return train, test


def _labelled(data: Sequence[str], options: SourceOptions) -> tuple[Examples, Examples]:
    train, test = (open_sources(data, options, split=split, hold_out=HELD_OUT) for split in ("train", "test"))
    classes = train.classes or ()
    if len(classes) < 2:
        raise ConfigError(
            f"--data {' '.join(data)}: task classify needs labels of two classes or more, this source has "
            f"{len(classes)}: put the pictures into class folders, or name the column with --source.label"
        )
    parts = []
    for source in (train, test):
        labels = labels_among(source, classes)
        if strange := sorted(set(source.classes or ()) - set(classes)):
            raise ConfigError(f"{source.name}: class {strange[0]!r} is not in train: it cannot be learned")
        if bare := np.flatnonzero(labels == NO_LABEL).tolist():
            name = source.sample_id(bare[0])
            raise ConfigError(f"{source.name}: {len(bare)} of {len(source)} pictures have no label, the first: {name}")
        parts.append(Examples(source, KnownLabels(labels), classes))
    return parts[0], parts[1]


def _scene_masks(spelling: str, options: SourceOptions, split: str) -> Examples:
    scenes: Any = open_source(spelling, replace(options, max_samples=None), split)
    whole = Examples(scenes, SceneMasks(scenes), semantic_names(scenes.level))
    part = scenes if scenes.has_splits else hash_split(scenes, split, HELD_OUT)
    return _limited(_part(whole, part), options)


def _part(whole: Examples, part: Source) -> Examples:
    """The labels of a Part of the pictures."""
    if not isinstance(part, Part):
        return whole
    return replace(whole, pictures=part, read=Chosen(whole.read, part.indices))


def _mask_column(spelling: str, options: SourceOptions, target: TargetConfig, split: str) -> Examples:
    """Masks beside the pictures in the rows of a table."""
    if target.classes is None:
        raise ConfigError("--target.classes FILE is missing: what the values of the masks mean, one name a line")
    classes, table = read_classes(Path(target.classes))
    plain = replace(options, max_samples=None)
    pictures = open_source(spelling, plain, split)
    masks = open_source(spelling, replace(plain, image=target.column), split)
    if len(masks) != len(pictures):
        raise ConfigError(f"--data {spelling}: {len(pictures)} pictures and {len(masks)} masks")
    whole = Examples(pictures, MaskFiles([masks], len(classes), table), classes)
    part = pictures if pictures.has_splits else hash_split(pictures, split, HELD_OUT)
    return _limited(_part(whole, part), options)


def _mask_folders(spelling: str, options: SourceOptions) -> tuple[Examples, Examples]:
    if spelling.startswith("masks:"):
        parts = spelling.removeprefix("masks:").split(",")
        if len(parts) != 3:
            raise ConfigError(f"--data {spelling!r}: write masks:IMAGES,MASKS,CLASSES (two folders and a class list)")
        images, masks, listed = (Path(part).expanduser() for part in parts)
    else:
        root = Path(spelling).expanduser()
        if not root.is_dir():
            raise ConfigError(
                f"--data {spelling!r}: task segment needs a folder with images/, masks/ and classes.txt, "
                "masks:IMAGES,MASKS,CLASSES, scenes, or --target.column"
            )
        images, masks = _folder(root, IMAGES), _folder(root, MASKS)
        listed = next((root / one for one in CLASS_LISTS if (root / one).is_file()), root / CLASS_LISTS[0])
    classes, table = read_classes(listed)
    every = not spelling.startswith("masks:")  # where both are named on their own, the masks lead
    return _beside(
        images, masks, options, lambda paths: MaskFiles(paths, len(classes), table), classes, "mask", every=every
    )


def _depth(spelling: str, options: SourceOptions, target: TargetConfig) -> tuple[Examples, Examples]:
    if not 0 <= target.low < target.high:
        raise ConfigError(f"target.low {target.low} and target.high {target.high}: need 0 <= low < high, in metres")
    root = Path(spelling).expanduser()
    if not root.is_dir():
        raise ConfigError(f"--data {spelling!r}: task depth needs a folder with rgb/ and depth/")
    units = depth_units(root / "index.json")
    together = not (root / DEPTH[0]).is_dir() and next(root.rglob("*_depth.png"), None) is not None
    images, depths = (root, root) if together else (_folder(root, RGB), _folder(root, DEPTH))
    ends = ("_rgb", "_depth") if together else ("", "")
    return _beside(images, depths, options, lambda paths: DepthFiles(paths, units), (), "depth map", ends=ends)


def _folder(root: Path, names: Sequence[str]) -> Path:
    found = next((root / name for name in names if (root / name).is_dir()), None)
    if found is None:
        raise ConfigError(f"--data {str(root)!r}: it has no folder {' or '.join(f'{name}/' for name in names)}")
    return found


def _beside(
    images: Path, labels: Path, options: SourceOptions, reader: Callable[[list[Path]], ReadLabel],
    classes: tuple[str, ...], kind: str, *, every: bool = True, ends: tuple[str, str] = ("", ""),
) -> tuple[Examples, Examples]:  # fmt: skip
    """(train, test) of pictures and label files of the same names.

    every: a picture without label is an error; else it is left out. ends: of both names, which differ where pictures
    and labels lie in one folder.
    """
    lists = {split: _list_beside(images, labels, split) for split in LISTS}
    parts = []
    for split in ("train", "test"):
        pictures = open_source(str(images), replace(options, max_samples=None), split)
        root = Path(getattr(pictures, "root", images))
        below = labels / root.relative_to(images)
        stored = _by_name((p.relative_to(below).as_posix() for p in sorted(below.rglob("*")) if p.is_file()), ends[1])
        found = _by_name((pictures.sample_id(i) for i in range(len(pictures))), ends[0])
        if not found.keys() & stored.keys():
            raise ConfigError(f"--data: no picture of {str(root)!r} has a {kind} of its name in {str(below)!r}")
        listed, other = (lists[split], lists[_OTHER[split]]) if not pictures.has_splits else (None, None)
        if listed is None and other is not None:  # a hash over all pictures would hold out some of those listed
            taken = set(read_lines(other))
            found = {name: place for name, place in found.items() if name not in taken}
            if not found.keys() & stored.keys():
                raise ConfigError(f"{other}: names every picture with a {kind}: none is left for {split}")
            say(f"{split}: the {len(found.keys() & stored.keys())} pictures that {other} does not name")
        names = [name for name in found if name in stored]
        bare = [name for name in found if name not in stored]
        if listed is not None:
            names = read_lines(listed)
            if gone := [name for name in names if name not in found or name not in stored]:
                raise ConfigError(f"{listed}: {gone[0]!r} has no picture in {images} or no {kind} in {labels}")
        elif bare and every:
            raise ConfigError(
                f"--data: {len(bare)} of {len(found)} pictures in {str(root)!r} have no {kind} in {str(below)!r}, the "
                f"first: {bare[0]}; add them, or take the pictures away"
            )
        kept: Source = Part(pictures, np.array([found[name][0] for name in names]), pictures.name)
        whole = Examples(kept, reader([below / stored[name][1] for name in names]), classes)
        split_by_hash = not pictures.has_splits and not any(lists.values())
        parts.append(_limited(_part(whole, hash_split(kept, split, HELD_OUT)) if split_by_hash else whole, options))
    return parts[0], parts[1]


def _by_name(files: Iterable[str], end: str) -> dict[str, tuple[int, str]]:
    """Name without suffix and `end` -> (place, file), of the files that have this end."""
    stems = ((i, file, Path(file).with_suffix("").as_posix()) for i, file in enumerate(files))
    return {stem.removesuffix(end): (i, file) for i, file, stem in stems if stem.endswith(end)}


def _list_beside(images: Path, labels: Path, split: str) -> Path | None:
    """MASKS_train.txt or train.txt beside the folder of labels, or inside it where the pictures lie there too."""
    folder = labels if labels == images else labels.parent
    names = [f"{start}{one}.txt" for start in (f"{labels.name}_", "") for one in LISTS[split]]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _limited(examples: Examples, options: SourceOptions) -> Examples:
    """--source.max-samples of them."""
    most = options.max_samples
    if most is not None and most < 1:
        raise ConfigError(f"--source.max-samples {most}: give 1 or more")
    if most is None or most >= len(examples):
        return examples
    chosen = np.sort(np.random.default_rng(0).permutation(len(examples))[:most])
    return _part(examples, Part(examples.pictures, chosen, examples.pictures.name))
