"""From a spelling to a data set: the kind is found by looking at the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.datasets import (
    built_in,
    coco,
    depth,
    folders,
    pairs,
    scene_parsing,
    search,
    stereo,
    video,
    voc,
    yolo,
)
from dino_tower.eval.datasets.base import Dataset
from dino_tower.images import UnreadableImage
from dino_tower.sources.folder import missing_path

SPLITS = ("train", "val", "test", "trainval")


class Layout(NamedTuple):
    """How a kind of data set is known and read: found(root), open(root, name, split), looked_at (for people)."""

    found: Callable[[Path], bool]
    open: Callable[[Path, str, str], Dataset]
    looked_at: str


def _any(*patterns: str) -> Callable[[Path], bool]:
    """Whether every pattern matches something."""
    return lambda root: all(next(root.glob(pattern), None) is not None for pattern in patterns)


def _segmentation(root: Path) -> bool:
    found = voc.voc_root(root)
    return found is not None and (found / "ImageSets" / "Segmentation").is_dir()


# kind -> layout; the first that is found is taken, `KIND:FOLDER` takes another
LAYOUTS: dict[str, Layout] = {
    "davis": Layout(
        _any("JPEGImages/480p", "Annotations/480p", "ImageSets"),
        video.open_davis,
        "JPEGImages/480p, Annotations/480p, ImageSets",
    ),
    "spair": Layout(
        _any("PairAnnotation", "Layout"),
        pairs.open_spair,
        "PairAnnotation, Layout/large, JPEGImages",
    ),
    "stereo": Layout(
        _any("*/im0.png", "*/im1.png"),
        stereo.open_stereo,
        "SCENE/im0.png, im1.png, disp0.pfm (Middlebury 2014)",
    ),
    "voc": Layout(
        _segmentation,
        voc.open_voc,
        "ImageSets/Segmentation, SegmentationClass, SegmentationObject, Annotations",
    ),
    "voc-boxes": Layout(
        lambda root: voc.voc_root(root) is not None,
        voc.open_voc_boxes,
        "ImageSets/Main, Annotations",
    ),
    "cityscapes": Layout(
        _any("leftImg8bit", "gtFine"),
        scene_parsing.open_cityscapes,
        "leftImg8bit, gtFine/*/*/*_gtFine_labelIds.png",
    ),
    "camvid": Layout(
        _any("trainannot"),
        scene_parsing.open_camvid,
        "train, trainannot, val, valannot, test, testannot",
    ),
    "ade20k": Layout(
        _any("images/training", "annotations/training"),
        scene_parsing.open_ade20k,
        "images/{training,validation}, annotations/..., objectInfo150.txt",
    ),
    "coco": Layout(
        _any("annotations/instances_*.json"),
        coco.open_coco,
        "annotations/instances_*2017.json, captions_*, val2017",
    ),
    "coco-panoptic": Layout(
        _any("annotations/panoptic_*.json"),
        coco.open_panoptic,
        "annotations/panoptic_*2017.json and its folder of PNGs",
    ),
    "coco-stuff": Layout(
        lambda root: _any("stuffthingmaps")(root) or _any("annotations/stuff_*.json")(root),
        coco.open_stuff,
        "stuffthingmaps/*2017, or annotations/stuff_*2017_pixelmaps",
    ),
    "revisited": Layout(
        lambda root: search.truth_file(root) is not None,
        search.open_revisited,
        "gnd_*.json (made from the .pkl), jpg",
    ),
    "copydays": Layout(
        _any("original", "strong"),
        search.open_copydays,
        "original, strong",
    ),
    "imagenet": Layout(
        lambda root: folders.imagenet_root(root) is not None,
        folders.open_imagenet,
        "train/nXXXXXXXX, val, LOC_val_solution.csv, LOC_synset_mapping.txt",
    ),
    "coco-json": Layout(
        lambda root: any(coco.json_in(f) for f in (root, root / "train")),
        coco.open_coco_json,
        "images and instances.json or annotations.json, captions.json, phrases.jsonl",
    ),
    "yolo": Layout(
        yolo.has_yolo,
        yolo.open_yolo,
        "images, labels/*.txt, classes.txt or *.yaml",
    ),
    "depth": Layout(
        depth.has_depth,
        depth.open_depth,
        "NYUv2 (nyu2_train, nyu2_test; rgb_N, sync_depth_N), N_rgb with N_depth, index.json",
    ),
    "masks": Layout(
        lambda root: folders.mask_folders(root) is not None,
        folders.open_masks,
        "images, masks, classes.txt or classes.json",
    ),
    "classes": Layout(
        folders.has_class_folders,
        folders.open_classes,
        "a folder a class, in train and test (or val) or split by hash",
    ),
}


def open_dataset(spelling: str, split: str = "test") -> Dataset:
    """Open one split of a folder, `KIND:FOLDER`, `masks:IMAGES,MASKS,CLASSES` or `scenes[:LEVEL]`.

    "test" is the part that is reported: validation where a data set keeps the labels of its test part back. Lists are
    read, pictures are not.

    Raises:
        ConfigError: one line naming the file, what is wrong there and the fix.
    """
    spelling = str(spelling)
    kind, colon, rest = spelling.partition(":")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, repr(spelling))
    if kind == "scenes" and not Path(spelling).is_dir():
        return built_in.open_scene_set(spelling, split)
    try:
        if kind == "masks" and colon and "," in rest:
            return folders.open_named_masks(spelling, split)
        named = bool(colon) and "/" not in kind and not Path(spelling).exists()
        if named and kind not in LAYOUTS:
            raise unknown("kind of data set", kind, [*LAYOUTS, "scenes"], repr(spelling))
        root = Path(rest if named else spelling).expanduser()
        if not root.exists():
            raise missing_path(spelling, root)
        if not root.is_dir():
            raise ConfigError(f"{spelling!r} is a file; a data set is a folder")
        if not named:
            kind = next((one for one, layout in LAYOUTS.items() if layout.found(root)), "")
        if not kind:
            if spelling == "scenes":
                raise ConfigError(
                    f"'scenes' is a folder here ({root.absolute()}); the built-in pictures are scenes:easy"
                )
            raise ConfigError(
                f"{spelling!r}: no layout that is known. For pictures of your own: a folder for each class, or "
                "images/ with masks/ and classes.txt, with labels/*.txt (YOLO) or with instances.json (COCO)"
            )
        return LAYOUTS[kind].open(root, spelling, split)
    except PermissionError as error:
        raise ConfigError(f"{spelling!r}: permission denied: {error.filename}") from None
    except UnreadableImage as error:
        raise ConfigError(f"{spelling!r}: {error.reason}") from None
