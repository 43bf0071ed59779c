"""Class masks of whole scenes: ADE20K, Cityscapes and CamVid."""

from __future__ import annotations

from pathlib import Path

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import VOID, Dataset, Item
from dino_tower.eval.datasets.reading import (
    MaskFile,
    all_labelled,
    images_in,
    needed_folder,
    own_list,
    read_lines,
)

ADE_CLASSES = 150
CITYSCAPES = tuple(
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
    "bus,train,motorcycle,bicycle".split(",")
)
# label id of the 19 classes that are evaluated; every other id from -1 to 33 is void
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_TABLE = (
    dict.fromkeys(range(34), VOID) | {VOID: VOID} | {stored: place for place, stored in enumerate(CITYSCAPES_IDS)}
)
CAMVID = tuple("sky building pole road pavement tree sign fence car pedestrian bicyclist".split())
CAMVID_TABLE = {place: place for place in range(len(CAMVID))} | {len(CAMVID): VOID, VOID: VOID}


def open_ade20k(root: Path, name: str, split: str) -> Dataset:
    """ADEChallengeData2016: 150 classes; the stored 0 ("other") is void, 1..150 become 0..149. "test" is validation."""
    folder = needed_folder(root / "images", split)
    pictures = images_in(folder)
    masks = {
        path: root / "annotations" / folder.name / path.relative_to(folder).with_suffix(".png") for path in pictures
    }
    missing = [path.name for path in pictures if not masks[path].is_file()]
    all_labelled(name, map(str, pictures), missing, f"PNG in annotations/{folder.name}")
    names = root / "objectInfo150.txt"
    classes = _ade_names(names) if names.is_file() else tuple(f"class {place}" for place in range(1, ADE_CLASSES + 1))
    table = {0: VOID} | {place + 1: place for place in range(ADE_CLASSES)}
    items = [Item(path.stem, path, mask_reader=MaskFile(masks[path], ADE_CLASSES, table)) for path in pictures]
    return Dataset(name, "ade20k", split, f"images/{folder.name}", items, frozenset({"masks"}), regions=classes)


def _ade_names(path: Path) -> tuple[str, ...]:
    """The first of each class's names: columns Idx, Ratio, Train, Val, (Stuff,) Name, after a header."""
    names = tuple(line.split("\t")[-1].split(",")[0].strip() for line in read_lines(path)[1:])
    if len(names) != ADE_CLASSES:
        raise ConfigError(f"{path}: {len(names)} names; ADE20K has {ADE_CLASSES} classes")
    return names


def open_cityscapes(root: Path, name: str, split: str) -> Dataset:
    """gtFine labelIds as the 19 evaluated classes, the others void. "test" is val: the labels of test are secret."""
    folder = needed_folder(root / "leftImg8bit", "val" if split == "test" else split)
    ending = "_leftImg8bit.png"
    pictures = [path for path in images_in(folder) if path.name.endswith(ending)]
    if not pictures:
        raise ConfigError(f"{folder}: no file ends in {ending}")
    items, missing = [], []
    for path in pictures:
        one = path.name.removesuffix(ending)
        mask = root / "gtFine" / folder.name / path.parent.name / f"{one}_gtFine_labelIds.png"
        if not mask.is_file():
            missing.append(one)
        items.append(Item(one, path, mask_reader=MaskFile(mask, len(CITYSCAPES), CITYSCAPES_TABLE)))
    all_labelled(name, (item.id for item in items), missing, f"gtFine/{folder.name}/*/*_gtFine_labelIds.png")
    return Dataset(
        name, "cityscapes", split, f"leftImg8bit/{folder.name}", items, frozenset({"masks"}), regions=CITYSCAPES
    )


def open_camvid(root: Path, name: str, split: str) -> Dataset:
    """The 11-class edition (SegNet): train, val, test folders, their `annot` twins; the stored 11 is void."""
    lists = root if any(root.glob("*.txt")) else None
    folder = needed_folder(root, split)
    twin = root / f"{folder.name}annot"
    if lists is not None:
        own = own_list(root, split)  # lines: /some/where/train/A.png /some/where/trainannot/A.png
        pictures = [folder / Path(line.split()[0]).name for line in read_lines(own)]
        chosen_by = own.name
    else:
        pictures, chosen_by = images_in(folder), folder.name
    missing = [path.name for path in pictures if not (twin / path.name).is_file()]
    all_labelled(name, map(str, pictures), missing, f"mask in {twin.name}")
    items = [
        Item(path.stem, path, mask_reader=MaskFile(twin / path.name, len(CAMVID), CAMVID_TABLE)) for path in pictures
    ]
    return Dataset(name, "camvid", split, chosen_by, items, frozenset({"masks"}), regions=CAMVID)
