"""The built-in scenes: labelled pictures without end, for the demo, the built-in tower and tests that need labels.

A scene is a function of (level, split, index) alone: the same bytes in every process and on every machine. The levels
and what they are good for stand in levels.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from dino_tower.errors import ConfigError, unknown
from dino_tower.scenes import words
from dino_tower.scenes.drawing import (
    SUBPIXEL_BITS,
    UNIT,
    Draws,
    coverage,
    noise_ground,
    noise_words,
    paint,
    second_tone,
)
from dino_tower.scenes.layout import Plan, lay_out
from dino_tower.scenes.levels import LEVELS, Level

SPLITS = ("train", "val", "test")
OCTAVES = (3, 6, 12, 24, 48)  # cells of the ground's noise along a side
VOID = 255  # the semantic label of an object of which too little shows to tell what it is


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
        return words.relations(self.objects, self.instances)

    @cached_property
    def phrases(self) -> tuple[tuple[str, tuple[int, int, int, int]], ...]:
        """(text, box): texts that are each true of exactly one object, which has that box."""
        return words.phrases(self.objects, self.relations)

    @cached_property
    def caption(self) -> str:
        """What is how often (easy, medium) or what is where (hard)."""
        return words.caption(self.objects, lambda: self.relations)


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
    draws = Draws(f"scenes/{level}/{split}", index, noise_words(OCTAVES))
    kind = index % len(settings.kinds)
    ground = noise_ground(draws.noise(OCTAVES), size, settings.contrast)
    plans = lay_out(settings, kind, draws)
    planes = np.ascontiguousarray(ground.transpose(2, 0, 1))  # numpy blends planes faster than pixels
    instances, patches = _paint_all(plans, planes)
    objects, semantic = _describe(level, plans, instances, patches)
    return Scene(np.ascontiguousarray(planes.transpose(1, 2, 0)), kind, objects, semantic, instances)


def _level(name: str) -> Level:
    if name not in LEVELS:
        raise unknown("level of scenes", name, LEVELS)
    return LEVELS[name]


def _paint_all(plans: list[Plan], planes: np.ndarray) -> tuple[np.ndarray, list[_Patch]]:
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
    level: str, plans: list[Plan], instances: np.ndarray, patches: list[_Patch]
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
