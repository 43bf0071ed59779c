"""The built-in scenes: the same bytes everywhere, masks and words that agree, labels that raw pixels cannot tell."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from dino_tower.errors import ConfigError
from dino_tower.scenes import LEVELS, SPLITS, VOID, Scene, kind_names, make_scene, semantic_names

# blake2b of image, instances and semantic, in this order. A change here changes what every recipe was measured on.
PINNED = {
    ("easy", "train", 0): "255b1692b01c85f8",
    ("easy", "test", 12345): "1e713076f6914b21",
    ("medium", "val", 7): "ec486d33fe23d9d4",
    ("hard", "train", 3): "970ee91afc1628d5",
}


def fingerprint(scene: Scene) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in (scene.image, scene.instances, scene.semantic):
        digest.update(part.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("level, split, index", PINNED)
def test_the_bytes_of_a_scene_never_change(level: str, split: str, index: int) -> None:
    assert fingerprint(make_scene(level, index, split)) == PINNED[level, split, index]


def test_another_process_makes_the_same_scene_whatever_it_made_before() -> None:
    code = (
        "from dino_tower.scenes import make_scene\n"
        "make_scene('hard', 5); make_scene('easy', 1)\n"
        "import hashlib; s = make_scene('medium', 41, 'test')\n"
        "print(hashlib.blake2b(s.image.tobytes(), digest_size=8).hexdigest(), s.caption, s.phrases)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    scene = make_scene("medium", 41, "test")
    digest = hashlib.blake2b(scene.image.tobytes(), digest_size=8).hexdigest()
    assert out == f"{digest} {scene.caption} {scene.phrases}"


def test_importing_the_generator_does_not_import_opencv_or_torch() -> None:
    code = "import sys, dino_tower.scenes; print(sorted({'cv2', 'torch'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == "[]"


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_scene_and_no_index_repeats(level: str) -> None:
    keys = [(split, i) for split in SPLITS for i in range(60)]
    images = [make_scene(level, i, split, size=32).image.tobytes() for split, i in keys]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("level", LEVELS)
def test_kinds_are_balanced_and_have_names(level: str) -> None:
    kinds = len(LEVELS[level].kinds)
    counts = np.bincount([make_scene(level, i, size=16).kind for i in range(5 * kinds)], minlength=kinds)
    assert counts.tolist() == [5] * kinds == [5] * len(kind_names(level))


@pytest.mark.parametrize("level", LEVELS)
def test_every_kind_is_made_of_classes_of_its_own(level: str) -> None:
    classes = [name for kind in LEVELS[level].kinds for name in kind]
    assert len(set(classes)) == len(classes)
    known = semantic_names(level)
    assert all(any(name in full for full in known) for name in classes)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [None, 64])
def test_masks_boxes_and_classes_agree(level: str, size: int | None) -> None:
    names = semantic_names(level)
    for index in range(40):
        scene = make_scene(level, index, size=size)
        side = LEVELS[level].size if size is None else size
        assert scene.image.shape == (side, side, 3) and scene.image.dtype == np.uint8
        assert scene.instances.shape == scene.semantic.shape == (side, side)
        assert set(np.unique(scene.instances)) - {0} == {thing.instance for thing in scene.objects}
        assert ((scene.semantic == 0) == (scene.instances == 0)).all()
        for thing in scene.objects:
            mask = scene.instances == thing.instance
            rows, columns = np.nonzero(mask)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            first = thing.colour if LEVELS[level].classes == "colour" else thing.texture
            label = names.index(f"{first} {thing.shape}") if thing.visible >= 0.25 else VOID
            assert (scene.semantic[mask] == label).all()
            assert 0 < thing.visible <= 1


def test_what_lies_in_front_hides_what_lies_behind() -> None:
    partly = [thing for i in range(200) for thing in make_scene("hard", i, size=96).objects if thing.visible < 0.9]
    assert len(partly) >= 20, "the hard level should have occlusion"
    assert all(thing.visible > 0 for thing in partly)


def test_a_plain_object_has_its_colour_where_its_mask_says() -> None:
    from dino_tower.scenes.drawing import COLOURS

    for index in range(30):
        scene = make_scene("easy", index)
        for thing in scene.objects:
            pixels = scene.image[scene.instances == thing.instance].astype(int)
            inside = np.median(pixels, axis=0)
            if len(pixels) >= 30:  # fewer are mostly edge
                assert np.abs(inside - COLOURS[thing.colour]).max() <= LEVELS["easy"].colour_jitter + 1


@pytest.mark.parametrize("level", ["easy", "medium"])
def test_the_kind_makes_up_its_share_of_every_scene(level: str) -> None:
    settings = LEVELS[level]
    for index in range(30):
        scene = make_scene(level, index)
        for thing in scene.objects:
            first = thing.colour if settings.classes == "colour" else thing.texture
            assert (f"{first} {thing.shape}" in settings.kinds[scene.kind]) == thing.from_kind
        assert sum(thing.from_kind for thing in scene.objects) >= settings.from_kind - 1


def test_the_kind_of_a_hard_scene_is_the_shape_of_its_largest_object() -> None:
    for index in range(32):
        scene = make_scene("hard", index)
        assert [thing.shape for thing in scene.objects if thing.from_kind] == [kind_names("hard")[scene.kind]]


@pytest.mark.parametrize("level", LEVELS)
def test_phrases_name_exactly_one_object(level: str) -> None:
    for index in range(60):
        scene = make_scene(level, index)
        texts = [text for text, _ in scene.phrases]
        assert len(set(texts)) == len(texts)
        for text, box in scene.phrases:
            matches = [thing.box for thing in scene.objects if fits(text, thing, scene)]
            assert matches == [box], (text, matches)


def fits(text: str, thing: object, scene: Scene) -> bool:
    """Whether a phrase is true of an object, read word by word with no help from the generator's own code."""
    words = text.removeprefix("the ")
    for relation in ("left of", "right of", "above", "below", "touching"):
        head, found, tail = words.partition(f" {relation} the ")
        if found:
            anchors = {j for j, other in enumerate(scene.objects) if looks(tail, other)}
            me = scene.objects.index(thing)
            return looks(head, thing) and any((me, relation, j) in scene.relations for j in anchors)
    return looks(words, thing)


def looks(words: str, thing: object) -> bool:
    has = {thing.shape, thing.colour, thing.texture, thing.size}
    return all(word in has for word in words.split())


def test_relations_hold_in_pixels_and_come_both_ways() -> None:
    seen = set()
    for index in range(80):
        scene = make_scene("hard", index)
        for i, word, j in scene.relations:
            seen.add(word)
            a, b = scene.objects[i].box, scene.objects[j].box
            opposite = {"left of": "right of", "above": "below", "touching": "touching"}
            back = opposite.get(word) or next(k for k, v in opposite.items() if v == word)
            assert (j, back, i) in scene.relations
            if word == "left of":
                assert a[0] + a[2] < b[0] + b[2]
            if word == "above":
                assert a[1] + a[3] < b[1] + b[3]
            if word == "touching":
                first, second = (scene.instances == scene.objects[k].instance for k in (i, j))
                grown = first.copy()
                grown[1:] |= first[:-1]
                grown[:-1] |= first[1:]
                grown[:, 1:] |= first[:, :-1]
                grown[:, :-1] |= first[:, 1:]
                assert (grown & second).any()
    assert seen == {"left of", "right of", "above", "below", "touching"}


def test_most_hard_objects_have_a_phrase_and_captions_say_where() -> None:
    scenes = [make_scene("hard", i) for i in range(100)]
    named = sum(len({box for _, box in scene.phrases}) for scene in scenes)
    assert named >= 0.8 * sum(len(scene.objects) for scene in scenes)
    relations = ("left of", "right of", "above", "below", "touching")
    assert sum(any(word in scene.caption for word in relations) for scene in scenes) >= 90


def test_a_larger_picture_shows_the_same_scene() -> None:
    small, large = make_scene("hard", 9), make_scene("hard", 9, size=384)
    assert [thing.shape for thing in small.objects] == [thing.shape for thing in large.objects]
    for a, b in zip(small.objects, large.objects, strict=True):
        assert np.abs(np.array(a.box) * 2 - np.array(b.box)).max() <= 4


def test_raw_pixels_hardly_tell_the_kinds_of_the_easy_level() -> None:
    bank, queries = ([make_scene("easy", i, split) for i in range(n)] for split, n in (("train", 800), ("test", 200)))

    def pixels(scenes: list[Scene]) -> np.ndarray:
        small = np.stack([s.image.reshape(16, 6, 16, 6, 3).mean(axis=(1, 3)).ravel() for s in scenes]) - 128
        return small / np.linalg.norm(small, axis=1, keepdims=True)

    nearest = np.argsort(-(pixels(queries) @ pixels(bank).T), axis=1)[:, :5]
    kinds = np.array([s.kind for s in bank])[nearest]
    votes = np.array([np.bincount(row, minlength=10).argmax() for row in kinds])
    accuracy = 100 * np.mean(votes == [s.kind for s in queries])
    assert 10 < accuracy < 40, f"5-NN of raw pixels: {accuracy:.1f} %, chance 10 %"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("esy", 0), "'easy'"),
        (("easy", 0, "tset"), "'test'"),
        (("easy", -1), "0 or more"),
        (("easy", 0, "train", 8), "at least 16"),
    ],
)
def test_a_wrong_request_is_one_clear_line(arguments: tuple, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make_scene(*arguments)
    assert "\n" not in str(caught.value)
