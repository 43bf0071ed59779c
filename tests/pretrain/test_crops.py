"""Applying the decisions: `exact` is PIL and torchvision bit for bit, `fast` stays within 1.5 grey levels of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as F

from dino_tower.pretrain.crops.views import CropsConfig, View, at_least, draw_views, make_views

ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}
OPERATIONS = {
    "resize": {},
    "flip": {"flip": True},
    "grayscale": {"grayscale": True},
    "solarize": {"solarize": 128},
    "blur_small": {"blur": 0.3},
    "blur_medium": {"blur": 1.1},
    "blur_large": {"blur": 2.0},
    "brightness_down": {"jitter": (("brightness", 0.6),)},
    "brightness_up": {"jitter": (("brightness", 1.4),)},
    "contrast_down": {"jitter": (("contrast", 0.6),)},
    "contrast_up": {"jitter": (("contrast", 1.4),)},
    "saturation_down": {"jitter": (("saturation", 0.8),)},
    "saturation_up": {"jitter": (("saturation", 1.2),)},
    "hue_back": {"jitter": (("hue", -0.1),)},
    "hue_on": {"jitter": (("hue", 0.07),)},
}
WIDTH, HEIGHT = 500, 375


def photo(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture with the spectrum and the edges of a photo: coloured 1/f noise and discs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, height, width))) / frequency**1.3, s=(height, width))
    luma, red, blue = noise / noise.std((1, 2), keepdims=True)
    pixels = np.stack([luma + 0.4 * red, luma - 0.2 * red - 0.2 * blue, luma + 0.4 * blue], -1) * 50 + 120
    for _ in range(10):
        x, y, radius = rng.integers(0, width), rng.integers(0, height), rng.uniform(0.03, 0.2) * width
        disc = np.hypot(np.arange(height)[:, None] - y, np.arange(width)[None] - x) < radius
        pixels[disc] = 0.4 * pixels[disc] + 0.6 * rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [photo(seed) for seed in range(4)]


def reference(image: Image.Image, view: View) -> np.ndarray:
    """The published order of operations, composed from torchvision's functional interface and PIL."""
    left, top, width, height = view.box
    size = [view.size, view.size]
    out = F.resized_crop(image, top, left, height, width, size, F.InterpolationMode.BICUBIC, antialias=True)
    if view.flip:
        out = F.hflip(out)
    for name, factor in view.jitter or ():
        out = ADJUST[name](out, factor)
    if view.grayscale:
        out = F.rgb_to_grayscale(out, num_output_channels=3)
    if view.blur is not None:
        out = out.filter(ImageFilter.GaussianBlur(radius=view.blur))
    if view.solarize is not None:
        out = ImageOps.solarize(out, view.solarize)
    return np.asarray(out)


def one_view(**decisions: object) -> View:
    plain = {"size": 96, "box": (60, 40, 230, 210), "picture": (WIDTH, HEIGHT), "flip": False, "jitter": None}
    return View(**(plain | {"grayscale": False, "blur": None, "solarize": None} | decisions))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(first.astype(int) - second).mean())


def test_exact_is_torchvision_and_pil_bit_for_bit(photos: list[Image.Image]) -> None:
    config = CropsConfig(back_end="exact", solarize_p=(0.3, 0.3, 0.3))
    seen = {"flip": 0, "jitter": 0, "grayscale": 0, "blur": 0, "solarize": 0}
    for index, image in enumerate([*photos, photo(9, 120, 300), photo(10, 61, 40)]):
        views = draw_views(config, *image.size, np.random.default_rng(index))
        for view, pixels in zip(views, make_views(image, views, config), strict=True):
            np.testing.assert_array_equal(pixels, reference(image, view))
            for name in seen:
                seen[name] += getattr(view, name) not in (None, False)
    assert min(seen.values()) >= 5, f"too few of some operation to mean anything: {seen}"


@pytest.mark.parametrize("name", OPERATIONS)
def test_exact_does_each_operation_as_torchvision(name: str, photos: list[Image.Image]) -> None:
    view = one_view(**OPERATIONS[name])
    (pixels,) = make_views(photos[0], [view], CropsConfig(back_end="exact"))
    np.testing.assert_array_equal(pixels, reference(photos[0], view))


def test_exact_hue_is_pil_for_every_kind_of_colour() -> None:
    """All combinations of 32 levels per channel, among them greys, black and ties between channels."""
    levels = np.r_[0, 1, 2, 3, 127, 128, 253, 254, 255, np.linspace(8, 248, 23).astype(int)]
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(256, 128, 3).astype(np.uint8)
    image = Image.fromarray(colours).resize((256, 256), Image.Resampling.NEAREST)
    for factor in (-0.5, -0.1, -0.004, 0.0, 0.03, 0.0999, 0.5):
        view = one_view(size=256, box=(0, 0, 256, 256), picture=(256, 256), jitter=(("hue", factor),))
        (pixels,) = make_views(image, [view], CropsConfig(back_end="exact"))
        np.testing.assert_array_equal(pixels, reference(image, view))


@pytest.mark.parametrize("size", [24, 96, 224])
@pytest.mark.parametrize("name", OPERATIONS)
def test_fast_is_within_one_and_a_half_grey_levels_per_operation(
    name: str, size: int, photos: list[Image.Image]
) -> None:
    view = one_view(size=size, **OPERATIONS[name])
    distances = [
        distance(make_views(image, [view], CropsConfig())[0], make_views(image, [view], CropsConfig("exact"))[0])
        for image in photos
    ]
    assert max(distances) <= 1.5, distances


def test_fast_takes_the_same_decisions_picture_by_picture(photos: list[Image.Image]) -> None:
    """Whole chains: a wrong order of operations or a missing clip between two of them costs several levels."""
    distances = []
    for index, image in enumerate(photos * 2):
        views = draw_views(CropsConfig(), WIDTH, HEIGHT, np.random.default_rng(index))
        assert views == draw_views(CropsConfig("exact"), WIDTH, HEIGHT, np.random.default_rng(index))
        mine, theirs = (make_views(image, views, CropsConfig(back_end)) for back_end in ("fast", "exact"))
        distances += [distance(*pair) for pair in zip(mine, theirs, strict=True)]
    assert np.mean(distances) <= 1.0, np.mean(distances)
    assert max(distances) <= 3.0, max(distances)


def test_fast_clips_between_operations_as_pil_does() -> None:
    """Bright picture, brighter, then less contrast: without the clip in between the highlights would come back."""
    image = Image.fromarray(np.linspace(120, 255, 96 * 96 * 3).reshape(96, 96, 3).astype(np.uint8))
    jitter = (("brightness", 1.4), ("contrast", 0.6), ("saturation", 1.2))
    view = one_view(size=96, box=(0, 0, 96, 96), picture=(96, 96), jitter=jitter)
    (mine,), (theirs,) = (make_views(image, [view], CropsConfig(back_end)) for back_end in ("fast", "exact"))
    assert np.abs(mine.astype(int) - theirs).max() <= 3


def test_a_crop_many_times_its_view_stays_in_place() -> None:
    """Pixels are averaged in squares first; a box of an awkward size must not slide by the remainder."""
    image = photo(3, 751, 553)
    for box in ((7, 3, 739, 547), (0, 0, 751, 553), (333, 211, 301, 299), (450, 250, 301, 303)):
        view = one_view(size=24, box=box, picture=image.size)
        (mine,), (theirs,) = (make_views(image, [view], CropsConfig(back_end)) for back_end in ("fast", "exact"))
        assert distance(mine, theirs) <= 1.0, box


def test_a_reduced_jpeg_gives_the_views_of_the_full_one() -> None:
    full = photo(5, 1600, 1100)
    file = io.BytesIO()
    full.save(file, "JPEG", quality=95)
    config = CropsConfig(global_size=80, local_size=32, blur_p=(0, 0, 0))
    reduced = Image.open(file)
    reduced.draft("RGB", at_least(config))
    assert reduced.size == (800, 550), "the crops allow one half"
    views = draw_views(config, *full.size, np.random.default_rng(0))
    pairs = zip(make_views(reduced.convert("RGB"), views, config), make_views(full, views, config), strict=True)
    distances = [distance(small, large) for small, large in pairs]
    assert np.mean(distances) <= 2.0, distances
    with pytest.raises(ValueError, match="full size"):
        make_views(reduced.convert("RGB"), views, CropsConfig("exact"))


@pytest.mark.parametrize("back_end", ["fast", "exact"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (640, 480)])
def test_any_picture_gives_compact_uint8_views(back_end: str, shape: tuple[int, int]) -> None:
    config = CropsConfig(back_end, global_size=32, local_size=16, locals=3)
    image = Image.new("RGB", shape, (200, 100, 50))
    views = draw_views(config, *shape, np.random.default_rng(1))
    arrays = make_views(image, views, config)
    assert [array.shape for array in arrays] == [(32, 32, 3)] * 2 + [(16, 16, 3)] * 3
    for array in arrays:
        assert array.dtype == np.uint8 and array.flags.c_contiguous and array.flags.writeable
        assert (array == array[0, 0]).all(), "a picture of one colour stays of one colour"


def test_a_picture_of_another_mode_is_refused() -> None:
    view = one_view(box=(0, 0, 10, 10), picture=(10, 10))
    with pytest.raises(ValueError, match="mode RGB, not 'L'"):
        make_views(Image.new("L", (10, 10)), [view], CropsConfig())
