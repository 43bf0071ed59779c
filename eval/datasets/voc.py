"""PASCAL VOC 2007 to 2012: palette masks, object masks and XML boxes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.datasets.base import Box, Dataset, Item
from dino_tower.eval.datasets.reading import MaskFile, StoredFile, all_labelled, own_list, read_lines, read_text

OBJECTS = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)


def voc_root(root: Path) -> Path | None:
    """The folder that holds JPEGImages and ImageSets: `root`, or the newest year of a devkit."""
    years = sorted([*root.glob("VOC20*"), *root.glob("VOCdevkit/VOC20*")], reverse=True)
    for folder in (root, *years):
        if (folder / "JPEGImages").is_dir() and any(
            (folder / "ImageSets" / n).is_dir() for n in ("Main", "Segmentation")
        ):
            return folder
    return None


def open_voc(root: Path, name: str, split: str) -> Dataset:
    """The segmentation lists: class masks (21 classes, 255 at outlines), object masks, boxes where XMLs are."""
    folder = voc_root(root) or root
    chosen = own_list(folder / "ImageSets" / "Segmentation", split)
    ids = [line.split()[0] for line in read_lines(chosen)]
    masks = {one: folder / "SegmentationClass" / f"{one}.png" for one in ids}
    all_labelled(name, ids, [one for one in ids if not masks[one].is_file()], "mask in SegmentationClass")
    objects, notes = folder / "SegmentationObject", folder / "Annotations"
    has_objects = all((objects / f"{one}.png").is_file() for one in ids)
    has_boxes = all((notes / f"{one}.xml").is_file() for one in ids)
    items = [
        Item(
            one,
            folder / "JPEGImages" / f"{one}.jpg",
            mask_reader=MaskFile(masks[one], len(OBJECTS) + 1),
            instance_reader=StoredFile(objects / f"{one}.png") if has_objects else None,
            boxes=read_boxes(notes / f"{one}.xml", offset=1) if has_boxes else None,
        )
        for one in ids
    ]
    has = {"masks"} | ({"instances"} if has_objects else set()) | ({"boxes"} if has_boxes else set())
    return Dataset(
        name, "voc", split, _relative(chosen, folder), items, frozenset(has), regions=("background", *OBJECTS)
    )


def open_voc_boxes(root: Path, name: str, split: str) -> Dataset:
    """The detection lists (ImageSets/Main): boxes. Object discovery is reported on the "trainval" of 2007 and 2012."""
    folder = voc_root(root) or root
    chosen = own_list(folder / "ImageSets" / "Main", split)
    ids = [line.split()[0] for line in read_lines(chosen)]
    notes = folder / "Annotations"
    all_labelled(name, ids, [one for one in ids if not (notes / f"{one}.xml").is_file()], "XML in Annotations")
    items = [
        Item(one, folder / "JPEGImages" / f"{one}.jpg", boxes=read_boxes(notes / f"{one}.xml", offset=0)) for one in ids
    ]
    return Dataset(name, "voc-boxes", split, _relative(chosen, folder), items, frozenset({"boxes"}), regions=OBJECTS)


def read_boxes(path: Path, offset: int) -> tuple[Box, ...]:
    """The objects of one XML file. VOC counts pixels from 1 and includes the last; `offset` is added to class numbers.

    Raises ConfigError for broken XML, an unknown class, an object without its box and a box without area.
    """
    text = read_text(path)
    try:
        found = []
        for one in ElementTree.fromstring(text).iter("object"):
            left, top, right, bottom = (
                float(one.findtext(f"bndbox/{n}") or "") for n in ("xmin", "ymin", "xmax", "ymax")
            )
            kind = (one.findtext("name") or "").strip()
            if kind not in OBJECTS:
                raise unknown("VOC class", kind, OBJECTS, str(path))
            if right < left or bottom < top:
                raise ConfigError(f"{path}: box {left:g} {top:g} {right:g} {bottom:g} has no area")
            corners = (left - 1, top - 1, right, bottom)
            found.append(Box(corners, OBJECTS.index(kind) + offset, (one.findtext("difficult") or "0").strip() == "1"))
    except ElementTree.ParseError as error:
        raise ConfigError(f"{path}: broken XML: {error}") from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: an object without xmin, ymin, xmax, ymax as numbers") from None
    return tuple(found)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
