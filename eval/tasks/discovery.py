"""Object discovery: one box a picture from the keys of the last block, without a label. LOST and TokenCut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dino_tower.eval.boxes import corloc
from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.lost import Found, lost
from dino_tower.eval.stats import Parts, of_values, score
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks.segmentation import small
from dino_tower.eval.tokencut import Cut, tokencut
from dino_tower.eval.view import View
from dino_tower.families import family_of
from dino_tower.tower import Tower

METHODS: dict[str, Callable[[Tensor, int, tuple[int, int]], Found | Cut]] = {"lost": lost, "tokencut": tokencut}
METRICS = {"lost": Metric("CorLoc, LOST"), "tokencut": Metric("CorLoc, TokenCut")}
Ink = tuple[int, int, int]
LINES = {"lost": 5, "tokencut": 2}  # drawn in this order: both are seen where they agree
INKS: dict[str, Ink] = {
    "lost": (230, 159, 0),
    "tokencut": (0, 158, 200),
    "truth": (60, 200, 60),
}  # apart for the colour-blind, too


def run(view: View, data: Split, seed: int) -> Outcome:
    """A hit where the box overlaps any true one by half or more. Pictures in their own shape.

    Boxes are found on the patch grid and scaled to the picture: what is resized to whole patches has patches that are
    a little wider or higher than others.
    """
    rows = view.keys(data.test)
    ids = [item.id for item in data.test]
    kept = set(kept_ids(ids))
    boxes: dict[str, list[Tensor]] = {name: [] for name in METHODS}
    pictures: dict[str, Image.Image] = {}
    for place, item in enumerate(data.test):
        keys, size = rows[place], item.size()
        for name, method in METHODS.items():
            boxes[name].append(scaled(method(keys, 1, rows.grid(place)).box, rows.grid(place), size))
        if item.id in kept:
            pictures[item.id] = drawn(item, [(boxes[name][-1], INKS[name], LINES[name]) for name in METHODS])
    truths = [true_boxes(item, data.test) for item in data.test]
    return Outcome({name: of_values(corloc(found, truths)) for name, found in boxes.items()}, ids, pictures=pictures)


def scaled(box: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A box [4] in patches of a grid (h, w), in pixels of a picture of (width, height)."""
    step = torch.tensor([size[0] / grid[1], size[1] / grid[0]], dtype=torch.float64)
    return box.double() * step.repeat(2)


def true_boxes(item: Item, data: Dataset) -> Tensor:
    """[T, 4]. Published numbers on VOC count its difficult objects as found; crowds of COCO are no object."""
    counted = [box for box in item.boxes or () if data.kind.startswith("voc") or not box.difficult]
    return torch.tensor([box.corners for box in counted], dtype=torch.float64).reshape(-1, 4)


def constant(data: Split) -> Mapping[str, Parts]:
    """The better of two boxes: the whole picture, and the middle half of its area."""
    truths = [true_boxes(item, data.test) for item in data.test]
    found = []
    for share in (1.0, 0.5**0.5):
        margin = (1 - share) / 2
        corners = torch.tensor([margin, margin, 1 - margin, 1 - margin], dtype=torch.float64)
        boxes = [corners * torch.tensor(item.size(), dtype=torch.float64).repeat(2) for item in data.test]
        found.append(of_values(corloc(boxes, truths)))
    return dict.fromkeys(METRICS, max(found, key=score))


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """Picture, and picture with every true box."""
    wanted = set(ids)
    return {
        item.id: (small(item.image()), drawn(item, [(box, INKS["truth"], 3) for box in true_boxes(item, data.test)]))
        for item in data.test
        if item.id in wanted
    }


def drawn(item: Item, boxes: Sequence[tuple[Tensor, Ink, int]]) -> Image.Image:
    """The picture, small, with boxes [4] in its pixels."""
    picture = small(item.image())
    whole = item.size()
    scale = torch.tensor([picture.width / whole[0], picture.height / whole[1]], dtype=torch.float64).repeat(2)
    draw = ImageDraw.Draw(picture)
    for box, ink, line in boxes:
        x0, y0, x1, y1 = (box.double() * scale).tolist()
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=ink, width=line)
    return picture


def no_self_attention(view: View, data: Split) -> str | None:
    """Why a tower has neither keys nor attention."""
    if isinstance(view.tower, Tower) and family_of(view.tower.model).attention is None:
        return "a convolutional tower has no attention and no keys"
    return None


def fits(view: View, data: Split) -> str | None:
    """Keys, and at least one true box."""
    if not any(len(true_boxes(item, data.test)) for item in data.test):
        return "no picture has a true box"
    return no_self_attention(view, data)


DISCOVERY = Task(
    "discovery", "object discovery", METRICS, run,
    features=("keys",), geometry="native", fits=fits, floor=constant, truth=truth,
)  # fmt: skip
