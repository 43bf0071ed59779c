"""`dino-tower show TOWER IMAGE...`: what a tower sees in your pictures, as one page to click through and as PNGs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dino_tower.errors import ConfigError
from dino_tower.explorer.files import Folder, find_images, short_names
from dino_tower.explorer.page import explorer_page
from dino_tower.explorer.pictures import Sight, write_pictures
from dino_tower.images import UnreadableImage, read_image
from dino_tower.run.spelling import run_and_network
from dino_tower.tokens import Tokens
from dino_tower.tower import Tower, load_tower

PAGE = "explore.html"
MOST_IMAGES = 24  # on one page: more would be heavy to send around and slow on a phone
LONGEST, MOST_LONGEST = 40, 48  # patches along the longer side of a picture, unless --size says otherwise
MOST_SCALE = 3  # times the side the tower was made for: further out its positions are guesses
KEPT = 1200  # pixels of the longer side of what is drawn on
MOST_PATCHES = 4096  # of one picture: attention needs the square of it
GENERIC = ("export", "student", "teacher", "tower", "model")  # folder names that say nothing about a tower

Size = int | Literal["native"] | None


class Explored(NamedTuple):
    """What `explore` wrote."""

    page: Path
    pictures: int
    skipped: list[tuple[Path, str]]  # pictures that could not be read, and why
    left_out: int  # pictures beyond MOST_IMAGES
    size: str  # how large the pictures were shown to the tower, in words
    files: list[Path]  # the page and the PNGs


def explore(
    tower: str | Path | Tower, images: Sequence[str | Path], output: str | Path | None = None, size: Size = None
) -> Explored:
    """Show pictures to a tower and write `output`/explore.html and PNGs of what it sees.

    tower: how it is spelled, or a loaded one, which stays on its device.
    images: files and folders (searched to any depth). Of more than MOST_IMAGES an even choice is taken.
    output: a directory, by default show/NAME of the tower; one that an earlier call wrote is replaced.
    size: pixels of a picture's longer side as the tower sees it, rounded to a multiple of its patch; "native": each
    picture's own; None: see `longest_side`. Pictures are never cropped.
    Raises ConfigError when there is no such tower or picture, none can be read, or `output` holds other files.
    """
    found = find_images(images)
    name = str(tower.name if isinstance(tower, Tower) else tower)
    folder = Folder(Path(output) if output is not None else Path("show") / _file_name(shown_name(name)))
    taken = found if len(found) <= MOST_IMAGES else [found[i * len(found) // MOST_IMAGES] for i in range(MOST_IMAGES)]
    loaded = tower if isinstance(tower, Tower) else load_tower(tower)
    if not isinstance(tower, Tower) and torch.cuda.is_available():
        loaded.to("cuda")
    sights, skipped = [], []
    labels = short_names(taken)
    for path in tqdm(taken, "looking", disable=not sys.stderr.isatty(), leave=False, unit="picture"):
        try:
            image = read_image(path)
        except UnreadableImage as error:
            skipped.append((path, error.reason))
            continue
        sights.append(look(loaded, image, labels[path], size))
    if not sights:
        raise ConfigError(f"none of the {len(taken)} pictures can be read; the first, {skipped[0][0]}: {skipped[0][1]}")
    words = size_words(loaded, sights, size)
    left_out = len(found) - len(taken)
    facts = {"size": words, "skipped": [f"{path.name}: {why}" for path, why in skipped], "left_out": left_out}

    def fill(into: Path) -> None:
        views, start = write_pictures(into, sights)
        (into / PAGE).write_text(
            explorer_page(shown_name(name), loaded.patch, sights, views, start, facts), encoding="utf-8"
        )

    files = folder.write(fill)
    return Explored(folder.path / PAGE, len(sights), skipped, left_out, words, files)


def look(tower: Tower, image: Image.Image, name: str, size: Size = None) -> Sight:
    """One picture through the tower, whole. Raises ConfigError for a size that does not fit it."""
    height, width = seen_size(tower, image, size)
    out = tower([image], size=(height, width))
    assert isinstance(out, Tokens)  # one picture
    patches = out.patches[0].float().cpu()
    if not bool(torch.isfinite(patches).all()):
        raise ConfigError(f"{tower.name}: features that are not finite for {name}; is the tower broken?")
    attention: Tensor | None = None
    with suppress(ConfigError):  # the picture fits, as was just seen: this tower has nothing that attends
        attention = tower.attention([image], size=(height, width))[0].float().cpu()
    shown = image.copy()
    shown.thumbnail((KEPT, KEPT))  # two dozen photos of fifty megapixels would fill the memory
    return Sight(name, shown, patches, attention, "class token" if out.cls is not None else "pooling query")


def seen_size(tower: Tower, image: Image.Image, size: Size = None) -> tuple[int, int]:
    """(height, width) in pixels at which the whole picture is shown to the tower: multiples of its patch.

    A tower that takes only one size gets that one, whatever the proportions of the picture, unless `size` is given.
    Raises ConfigError for a size below one patch or above MOST_PATCHES patches.
    """
    patch = tower.patch
    if size is None and tower.native is not None:
        return tower.native
    longer = max(image.size) if size == "native" else size if size is not None else longest_side(tower)
    if longer < patch:
        raise ConfigError(f"--size {longer}: smaller than the patch of {tower.name}, {patch} pixels")
    cells = [max(1, round(side * longer / max(image.size) / patch)) for side in (image.height, image.width)]
    if cells[0] * cells[1] > MOST_PATCHES:
        largest = int((MOST_PATCHES / (cells[0] * cells[1])) ** 0.5 * longer) // patch * patch
        raise ConfigError(
            f"--size {size}: a picture of {image.width} x {image.height} pixels becomes {cells[1]} x {cells[0]} "
            f"patches of {patch}; at most {MOST_PATCHES} fit, so --size {largest} or less"
        )
    return cells[0] * patch, cells[1] * patch


def longest_side(tower: Tower) -> int:
    """Pixels of a picture's longer side by default: LONGEST patches, or as many as the tower was made for (up to
    MOST_LONGEST), but at most MOST_SCALE times the side that its processor gives it."""
    native = native_side(tower)
    cells = min(max(LONGEST, native // tower.patch), MOST_LONGEST, MOST_SCALE * native // tower.patch)
    return max(1, cells) * tower.patch


def native_side(tower: Tower) -> int:
    """The longer side in pixels that the tower's own processor makes of a square picture."""
    pixels = tower.pixels([Image.new("RGB", (64, 64))])
    assert isinstance(pixels, Tensor)  # one picture
    return max(pixels.shape[-2:])


def size_words(tower: Tower, sights: Sequence[Sight], size: Size) -> str:
    """A sentence on how large the tower saw the pictures."""
    if size is None and tower.native is not None:
        only = " x ".join(map(str, tower.native[::-1]))
        return f"Whole pictures, squeezed to {only} pixels: the tower takes no other size."
    native = native_side(tower)
    if size == "native":
        return f"Each picture at its own size; the tower was made for {native} pixels."
    largest = max(max(sight.patches.shape[:2]) for sight in sights) * tower.patch
    longer = longest_side(tower) if size is None else largest
    times = longer / native
    compared = "the size" if times == 1 else f"{times:.2g} times the size"
    why = ""
    if size is None and longer == MOST_SCALE * native // tower.patch * tower.patch and longer < LONGEST * tower.patch:
        why = " Larger than that its knowledge of places would be a guess."
    return (
        f"Whole pictures, their longer side {longer} pixels ({longer // tower.patch} patches): {compared} the tower "
        f"was made for.{why}"
    )


def shown_name(tower: str) -> str:
    """What the page calls a tower: as it was spelled, but of a path its last part only, since pages are sent around."""
    kind, colon, what = tower.rpartition(":")
    there = Path(what).expanduser().exists() or run_and_network(str(Path(what).expanduser()))[0] is not None
    if not there and what.count("/") <= 1:
        return tower  # a name of the Hub or of a library
    parts = [part for part in re.split(r"[/\\]+", what) if part not in ("", ".", "..")] or ["tower"]
    last = f"{parts[-2]}/{parts[-1]}" if parts[-1] in GENERIC and len(parts) > 1 else parts[-1]
    return f"{kind}{colon}{last}"


def summary(done: Explored) -> str:
    """The few lines that the command prints; the last one is the page."""
    lines = [f"{done.pictures} picture{'s' if done.pictures > 1 else ''}. {done.size}"]
    if done.skipped:
        path, why = done.skipped[0]
        lines.append(f"{len(done.skipped)} could not be read and left out; the first, {path}: {why}")
    if done.left_out:
        lines.append(f"{done.left_out:,} more left out: a page holds {MOST_IMAGES}, taken evenly from what was named")
    pngs, size = len(done.files) - 1, done.page.stat().st_size / 1e6
    lines.append(f"{pngs} PNGs beside one page of {size:.1f} MB that opens anywhere, without the network:")
    return "\n".join([*lines, str(done.page)])


def parse_size(text: str | None) -> Size:
    """What --size may be: absent, `native` or a number of pixels. Raises ConfigError."""
    if text is None or text == "native":
        return None if text is None else "native"
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        raise ConfigError(f"--size {text!r}: give the pixels of the longer side, or native")
    return int(text)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.@-]+", "-", text).strip("-.") or "tower"
