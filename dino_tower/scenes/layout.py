"""What a scene holds and where: classes, places, sizes and turns of its objects, drawn before anything is painted.

Legend: lengths are in layout units (drawing.UNIT = the picture's side), turns in drawing.TURN-ths.
"""

from __future__ import annotations

from dataclasses import dataclass

from dino_tower.scenes.drawing import COLOURS, TURN, UNIT, Draws
from dino_tower.scenes.levels import Level


@dataclass(frozen=True)
class Plan:
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


def lay_out(settings: Level, kind: int, draws: Draws) -> list[Plan]:
    """What to paint, in order. Places and radii first, so that every level draws them alike."""
    count = draws.between(*settings.objects)
    cells = settings.cells
    places = _free_places(settings, count, draws) if cells is None else _grid_places(settings, cells, count, draws)
    largest = max(range(count), key=lambda i: places[i][2])
    chosen = range(settings.from_kind) if cells else (largest,)
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
        plans.append(Plan(shape, colour, texture, i in chosen, x, y, radius, turn, (red, green, blue)))
    # A cell is a place of its own, but shapes reach over its edge: neither kind nor distractors always lie in front.
    return plans if cells is None else draws.shuffled(plans)


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


def _grid_places(settings: Level, cells: tuple[int, int], count: int, draws: Draws) -> list[tuple[int, int, int]]:
    """(x, y, radius) of `count` objects, one in each cell of the grid."""
    columns, rows = cells if draws.below(2) else cells[::-1]
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
