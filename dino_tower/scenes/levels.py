"""The levels of the built-in scenes, easiest first, and what each setting means.

* easy: many small plain objects; half of them are of the two colour-and-shape classes of the scene's kind, the rest
  distract. What two crops of a picture share is what DINO learns, so the kind lies everywhere in the picture and the
  ground (coloured noise of mid-grey mean) says nothing. Raw pixels see places and mean colours, which hardly tell.
* medium: the kind is a pair of texture-and-shape classes on fewer, larger objects; their colours are drawn at random.
* hard: a few objects that may touch and hide one another, with phrases that name exactly one object each and left of /
  right of / above / below / touching: for grounding and spatial questions. The kind is the shape of the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

from dino_tower.scenes.drawing import COLOURS


@dataclass(frozen=True)
class Level:
    """Settings of one level. Lengths are in thousandths of the picture's side."""

    size: int  # pixels
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    textures: tuple[str, ...]
    classes: str  # what an object's class is made of: "colour" or "texture", and always the shape
    kinds: tuple[tuple[str, ...], ...]  # the classes of each kind
    from_kind: int  # how many objects are of the kind's classes; the rest are of any other class
    objects: tuple[int, int]  # fewest, most
    cells: tuple[int, int] | None  # objects lie one in each cell of this grid, or anywhere
    radius: tuple[int, int]
    colour_jitter: int  # largest shift of each channel, in 255ths
    contrast: int  # of the ground, in percent


LEVELS: dict[str, Level] = {
    "easy": Level(
        size=96,
        shapes=("disc", "triangle", "cross", "ring", "bar"),
        colours=("red", "yellow", "green", "blue", "purple", "white"),
        textures=("plain",),
        classes="colour",
        kinds=(
            ("red disc", "blue ring"),
            ("yellow cross", "green triangle"),
            ("white bar", "purple disc"),
            ("blue triangle", "yellow ring"),
            ("green bar", "red cross"),
            ("purple ring", "yellow triangle"),
            ("white disc", "green cross"),
            ("red triangle", "purple bar"),
            ("blue cross", "white ring"),
            ("yellow bar", "blue disc"),
        ),
        from_kind=6,
        objects=(12, 12),
        cells=(4, 3),
        radius=(70, 130),
        colour_jitter=20,
        contrast=160,
    ),
    "medium": Level(
        size=96,
        shapes=("disc", "square", "triangle", "cross", "ring", "bar"),
        colours=("red", "yellow", "green", "blue", "purple", "white"),
        textures=("plain", "striped", "dotted", "checked"),
        classes="texture",
        kinds=(
            ("plain ring", "striped square"),
            ("dotted disc", "plain cross"),
            ("checked square", "plain triangle"),
            ("striped bar", "dotted triangle"),
            ("plain disc", "checked cross"),
            ("striped ring", "plain bar"),
            ("dotted square", "checked triangle"),
            ("striped cross", "checked disc"),
            ("plain square", "dotted bar"),
            ("striped disc", "checked ring"),
        ),
        from_kind=6,
        objects=(9, 9),
        cells=(3, 3),
        radius=(110, 160),
        colour_jitter=20,
        contrast=140,
    ),
    "hard": Level(
        size=192,
        shapes=("disc", "square", "triangle", "cross", "ring", "bar", "star", "crescent"),
        colours=tuple(COLOURS),
        textures=("plain", "striped", "dotted", "checked"),
        classes="colour",
        kinds=(("disc",), ("square",), ("triangle",), ("cross",), ("ring",), ("bar",), ("star",), ("crescent",)),
        from_kind=1,
        objects=(3, 6),
        cells=None,
        radius=(80, 200),
        colour_jitter=20,
        contrast=140,
    ),
}
