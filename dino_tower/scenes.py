"""The built-in scenes: labelled pictures without end, for the demo, the built-in tower and every test that needs labels.

A scene is a function of (level, split, index) alone: the same bytes in every process and on every machine. Levels:

* easy: many small plain objects; most are of the two colour-and-shape classes of the scene's kind, the rest distract.
  What two crops of a picture share is what DINO learns, so the kind lies everywhere in the picture and the ground
  (coloured noise of mid-grey mean) says nothing. Raw pixels see places and mean colours, which hardly tell the kind.
* medium: the kind is a pair of texture-and-shape classes on fewer, larger objects; their colours are drawn at random.
* hard: a few objects that may touch and hide one another, with phrases that name exactly one object each and
  left / right / above / below / touching relations: for grounding and spatial questions. The kind is the largest's shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from dino_tower import scene_words
from dino_tower.errors import ConfigError, unknown
from dino_tower.scene_drawing import (
    COLOURS,
    SUBPIXEL_BITS,
    TURN,
    UNIT,
    Draws,
    coverage,
    noise_ground,
    noise_words,
    paint,
    second_tone,
)

SPLITS = ("train", "val", "test")
VOID = 255  # the semantic label of an object of which too little shows to tell what it is


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
        from_kind=7,
        objects=(12, 12),
        cells=(4, 3),
        radius=(70, 130),
        colour_jitter=20,
        contrast=100,
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
        contrast=100,
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


@dataclass(frozen=True)
class SceneObject:
    """One object. box: (left, top, right, bottom) of what shows, in pixels, right and bottom excluded."""

    instance: int  # its value in Scene.instances
    shape: str
    colour: str
    size: str  # "small" or "large"
    texture: str
    box: tuple[int, int, int, int]
    from_kind: bool
    visible: float  # the share of it that no later object hides


@dataclass(frozen=True)
class Scene:
    """One labelled picture; H = W = the level's size, or the size asked for."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    kind: int
    objects: tuple[SceneObject, ...]  # painted in this order; wholly hidden ones are left out
    semantic: np.ndarray  # uint8 [H, W]: 0 ground, i = semantic_names(level)[i], VOID
    instances: np.ndarray  # uint8 [H, W]: 0 ground, else SceneObject.instance

    # Words are made when asked for: pretraining never does, and they cost as much as the picture.
    @cached_property
    def relations(self) -> tuple[tuple[int, str, int], ...]:
        """(i, "left of", j) for positions i, j in `objects`: every relation that clearly holds, both ways round."""
        return scene_words.relations(self.objects, self.instances)

    @cached_property
    def phrases(self) -> tuple[tuple[str, tuple[int, int, int, int]], ...]:
        """(text, box): texts that are each true of exactly one object, which has that box."""
        return scene_words.phrases(self.objects, self.relations)

    @cached_property
    def caption(self) -> str:
        """What is how often (easy, medium) or what is where (hard)."""
        return scene_words.caption(self.objects, self.relations)


@dataclass(frozen=True)
class _Plan:
    """One object before it is painted; lengths in layout units."""

    shape: str
    colour: str
    texture: str
    from_kind: bool
    x: int
    y: int
    radius: int
    turn: int
    tone: tuple[int, int, int]


_Patch = tuple[tuple[slice, slice], int]  # (rows, columns) of the picture, pixels covered


@cache
def semantic_names(level: str) -> tuple[str, ...]:
    """What each value of a level's semantic mask means; 0 is "ground"."""
    settings = _level(level)
    first = settings.colours if settings.classes == "colour" else settings.textures
    return ("ground", *(f"{one} {shape}" for one in first for shape in settings.shapes))


def kind_names(level: str) -> tuple[str, ...]:
    """The name of every kind of a level, by `Scene.kind`."""
    return tuple(" and ".join(kind) for kind in _level(level).kinds)


def make_scene(level: str, index: int, split: str = "train", size: int | None = None) -> Scene:
    """The scene of (level, split, index); `size` (pixels, at least 16) draws the same scene larger or smaller.

    Kinds take turns, so every run of len(kinds) indices holds each once. Splits share no scene.
    Raises ConfigError for an unknown level or split, a negative index or a size below 16.
    """
    settings = _level(level)
    if split not in SPLITS:
        raise unknown("split of scenes", split, SPLITS)
    if not 0 <= index < 1 << 63:
        raise ConfigError(f"scene index {index}: must be 0 or more and below 2^63")
    size = settings.size if size is None else size
    if size < 16:
        raise ConfigError(f"scene size {size}: must be at least 16 pixels")
    octaves = (3, 6, 12, 24, 48)
    draws = Draws(f"scenes/{level}/{split}", index, noise_words(octaves))
    kind = index % len(settings.kinds)
    ground = noise_ground(draws.noise(octaves), size, settings.contrast)
    plans = _plan(settings, kind, draws)
    planes = np.ascontiguousarray(ground.transpose(2, 0, 1))  # numpy blends planes faster than pixels
    instances, patches = _paint_all(plans, planes)
    objects, semantic = _describe(level, plans, instances, patches)
    return Scene(np.ascontiguousarray(planes.transpose(1, 2, 0)), kind, objects, semantic, instances)


def _level(name: str) -> Level:
    if name not in LEVELS:
        raise unknown("level of scenes", name, LEVELS)
    return LEVELS[name]


def _plan(settings: Level, kind: int, draws: Draws) -> list[_Plan]:
    """What to paint, in order. Places and radii first, so that every level draws them alike."""
    count = draws.between(*settings.objects)
    places = _grid_places(settings, count, draws) if settings.cells else _free_places(settings, count, draws)
    largest = max(range(count), key=lambda i: places[i][2])
    chosen = range(settings.from_kind) if settings.cells else (largest,)
    plans = []
    for i, (x, y, radius) in enumerate(places):
        wanted = settings.kinds[kind]
        words = wanted[i % len(wanted)].split() if i in chosen else _other_class(settings, wanted, draws)
        shape = words[-1]
        colour = words[0] if settings.classes == "colour" and len(words) > 1 else _pick(settings.colours, draws)
        texture = words[0] if settings.classes == "texture" else _pick(settings.textures, draws)
        jitter = settings.colour_jitter
        red, green, blue = (min(max(v + draws.between(-jitter, jitter), 0), 255) for v in COLOURS[colour])
        turn = draws.below(TURN)
        plans.append(_Plan(shape, colour, texture, i in chosen, x, y, radius, turn, (red, green, blue)))
    return plans


def _pick(items: tuple[str, ...], draws: Draws) -> str:
    return items[draws.below(len(items))]


def _other_class(settings: Level, wanted: tuple[str, ...], draws: Draws) -> list[str]:
    """A class outside the kind, drawn evenly."""
    first = settings.colours if settings.classes == "colour" else settings.textures
    others = [f"{one} {shape}" for one in first for shape in settings.shapes]
    while True:
        name = others[draws.below(len(others))]
        if name not in wanted:
            return name.split()


def _grid_places(settings: Level, count: int, draws: Draws) -> list[tuple[int, int, int]]:
    """(x, y, radius) of `count` objects, one in each cell of the grid, in a random order of cells."""
    columns, rows = settings.cells if draws.below(2) else settings.cells[::-1]
    places = []
    for cell in draws.shuffled(range(columns * rows))[:count]:
        wide, high = UNIT // columns, UNIT // rows
        x = cell % columns * wide + wide // 2 + draws.between(-wide // 4, wide // 4)
        y = cell // columns * high + high // 2 + draws.between(-high // 4, high // 4)
        places.append((x, y, draws.between(*settings.radius) * UNIT // 1000))
    return places


def _free_places(settings: Level, count: int, draws: Draws) -> list[tuple[int, int, int]]:
    """(x, y, radius) of `count` objects anywhere inside; radii small or large, with a gap between the two."""
    low, high = (r * UNIT // 1000 for r in settings.radius)
    third = (high - low) // 3
    sizes = [draws.below(2) for _ in range(count)]
    radii = [low + draws.below(third) if small else high - draws.below(third) for small in sizes]
    places: list[tuple[int, int, int]] = []
    for radius in sorted(radii, reverse=True):  # the small ones are painted over the large ones
        if places and draws.below(3) == 0:
            places.append((*_beside(places[draws.below(len(places))], radius, draws), radius))
            continue
        best, best_gap = (0, 0), -UNIT * UNIT
        for _ in range(10):
            x, y = (draws.between(radius, UNIT - radius) for _ in range(2))
            # Squared distances in place of distances: a root would be the only float of the layout.
            gap = min(((x - u) ** 2 + (y - v) ** 2 - (radius + r) ** 2 * 3 // 4 for u, v, r in places), default=0)
            if gap > best_gap:
                best, best_gap = (x, y), gap
            if gap >= 0:
                break
        places.append((*best, radius))
    return places


def _beside(place: tuple[int, int, int], radius: int, draws: Draws) -> tuple[int, int]:
    """A centre at which an object of this radius touches or partly hides the one at `place`."""
    x, y, other = place
    along, across = (radius + other) * draws.between(55, 90) // 100, draws.between(-other, other) // 2
    dx, dy = ((along, across), (-along, across), (across, along), (across, -along))[draws.below(4)]
    return min(max(x + dx, radius), UNIT - radius), min(max(y + dy, radius), UNIT - radius)


def _paint_all(plans: list[_Plan], planes: np.ndarray) -> tuple[np.ndarray, list[_Patch]]:
    """Paint the plans into uint8 [3, S, S], in order; returns instances uint8 [S, S] and where each one was painted."""
    size = planes.shape[1]
    fine = size << SUBPIXEL_BITS
    instances = np.zeros((size, size), np.uint8)
    patches = []
    for number, plan in enumerate(plans, start=1):
        mask, left, top = coverage(plan.shape, plan.turn, plan.x, plan.y, plan.radius, size)
        tone = np.array(plan.tone, np.uint16)[:, None, None]
        at = (plan.x * fine // UNIT - (left << SUBPIXEL_BITS), plan.y * fine // UNIT - (top << SUBPIXEL_BITS))
        second = second_tone(plan.texture, plan.turn, plan.radius * fine // UNIT, mask.shape, at)
        if second is not None:
            # A dark colour's second tone is lighter, any other's is darker.
            other = tone + 120 if sum(plan.tone) < 150 else tone * 3 // 8
            tone = np.where(second, other, tone)
        paint(planes, mask, left, top, tone)
        inside = mask >= 128
        where = (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]))
        instances[where][inside] = number
        patches.append((where, int(np.count_nonzero(inside))))
    return instances, patches


def _describe(
    level: str, plans: list[_Plan], instances: np.ndarray, patches: list[_Patch]
) -> tuple[tuple[SceneObject, ...], np.ndarray]:
    """The objects that show, and the semantic mask uint8 [S, S]."""
    import cv2

    settings, names = LEVELS[level], semantic_names(level)
    middle = sum(settings.radius) * UNIT // 2000
    labels = np.zeros(256, np.uint8)
    objects = []
    for number, (plan, (where, area)) in enumerate(zip(plans, patches, strict=True), start=1):
        mask = instances[where] == number
        shown = int(np.count_nonzero(mask))
        if not shown:
            continue
        x, y, wide, high = cv2.boundingRect(mask.view(np.uint8))
        left, top = x + where[1].start, y + where[0].start
        box = (left, top, left + wide, top + high)
        visible = shown / area
        first = plan.colour if settings.classes == "colour" else plan.texture
        labels[number] = names.index(f"{first} {plan.shape}") if visible >= 0.25 else VOID
        size = "large" if plan.radius >= middle else "small"
        objects.append(SceneObject(number, plan.shape, plan.colour, size, plan.texture, box, plan.from_kind, visible))
    return tuple(objects), labels[instances]
