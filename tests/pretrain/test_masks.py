"""The masks' statistics over 2,000 draws, against the recipe and against the authors' generators."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dino_tower.pretrain.algorithms import masks as module
from dino_tower.pretrain.algorithms.masks import (
    ASPECT,
    block_mask,
    draw_block,
    ibot_mask,
    random_mask,
    strata,
    stratum_mask,
)
from dino_tower.pretrain.loading.draws import Place
from dino_tower.pretrain.objectives import hidden
from dino_tower.pretrain.objectives.hidden import DrawMasks

DRAWS = 2000
IBOT_GRID, DINOV2_GRID, DINOV2_CROPS = (14, 14), (16, 16), 64

# What the authors' generators give over 200,000 masks that hide something: lower ends of all bins but the first, and
# the share of each bin. ibot/loader.py with the default ratios on a grid of 14 x 14, dinov2/data/masking.py and
# collate.py on 16 x 16 with 64 crops a batch.
PUBLISHED = {
    ("ibot", "patches"): (
        [26, 34, 42, 50, 57, 65, 73, 81, 89],
        [0.09747, 0.09894, 0.10023, 0.1011, 0.09079, 0.10274, 0.10122, 0.09955, 0.10045, 0.10751],
    ),
    ("ibot", "edges"): (
        [20, 25, 28, 31, 34, 36, 39, 42, 46],
        [0.0785, 0.12124, 0.07406, 0.10801, 0.10128, 0.07766, 0.12178, 0.09411, 0.10426, 0.11911],
    ),
    ("ibot", "border"): (
        [2, 4, 5, 6, 8, 10, 13],
        [0.27759, 0.11809, 0.07993, 0.07381, 0.13258, 0.10218, 0.10091, 0.11491],
    ),
    ("dinov2", "patches"): (
        [35, 45, 56, 66, 76, 86, 97, 107, 117],
        [0.0926, 0.09784, 0.10702, 0.09766, 0.09798, 0.09732, 0.10741, 0.09806, 0.09792, 0.1062],
    ),
    ("dinov2", "edges"): (
        [34, 39, 44, 47, 51, 54, 58, 62, 67],
        [0.09256, 0.09434, 0.1119, 0.08392, 0.11389, 0.0836, 0.11168, 0.09958, 0.096, 0.11254],
    ),
    ("dinov2", "border"): (
        [1, 3, 4, 6, 7, 9, 11, 15],
        [0.16151, 0.10572, 0.07082, 0.14144, 0.06646, 0.12177, 0.09954, 0.12814, 0.10461],
    ),
}
CHI_SQUARE = {7: 24.32, 8: 26.12, 9: 27.88}  # exceeded by chance once in 1,000, by degrees of freedom


def patches(mask: np.ndarray) -> int:
    return int(mask.sum())


def edges(mask: np.ndarray) -> int:
    """Neighbouring patches of which one is hidden: how compact the blocks are."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def border(mask: np.ndarray) -> int:
    """Hidden patches at the border of the grid, corners twice: where the blocks lie."""
    return int(mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum())


def batch_of_masks(rng: np.random.Generator, crops: int, grid: tuple[int, int], share: float = 0.5) -> np.ndarray:
    """DINOv2's masks of a batch's global crops [crops, h, w], of the two steps in which the loader draws them."""
    return np.stack([stratum_mask(rng, grid, *stratum) for stratum in strata(rng, crops, share, (0.1, 0.5)).tolist()])


def drawn(name: str, seed: int = 0) -> list[np.ndarray]:
    """About 2,000 masks that hide something."""
    rng = np.random.default_rng(seed)
    if name == "ibot":
        found = [ibot_mask(rng, IBOT_GRID) for _ in range(2 * DRAWS)]
    else:
        batches = [batch_of_masks(rng, DINOV2_CROPS, DINOV2_GRID) for _ in range(math.ceil(2 * DRAWS / DINOV2_CROPS))]
        found = [mask for batch in batches for mask in batch]
    return [mask for mask in found if mask.any()]


def chi_square(values: list[int], lower: list[int], shares: list[float]) -> float:
    counts = np.bincount(np.searchsorted(lower, values, side="right"), minlength=len(shares))
    expected = len(values) * np.array(shares) / sum(shares)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
def test_masks_are_distributed_as_the_published_generators_are(name: str) -> None:
    masks = drawn(name)
    for statistic in (patches, edges, border):
        lower, shares = PUBLISHED[name, statistic.__name__]
        value = chi_square([statistic(mask) for mask in masks], lower, shares)
        assert value < CHI_SQUARE[len(lower)], f"{statistic.__name__}: {value:.1f}"


def test_the_check_sees_blocks_of_another_aspect(monkeypatch) -> None:
    monkeypatch.setattr(module, "ASPECT", (0.9, 1 / 0.9))
    lower, shares = PUBLISHED["ibot", "edges"]
    assert chi_square([edges(mask) for mask in drawn("ibot")], lower, shares) > 2 * CHI_SQUARE[len(lower)]


@pytest.mark.parametrize("shape", ["block", "random"])
def test_ibot_masks_half_of_the_views_and_up_to_half_of_a_view(shape: str) -> None:
    rng = np.random.default_rng(1)
    ratios = np.array([ibot_mask(rng, IBOT_GRID, shape).mean() for _ in range(DRAWS)])
    masked = ratios[ratios > 0]
    assert abs(len(masked) / DRAWS - 0.5) < 0.04  # three and a half standard errors
    assert masked.max() <= 0.5
    assert abs(masked.mean() - 0.3) < 0.015
    if shape == "random":  # exact: U(0.1, 0.5) rounded down to whole patches
        assert masked.min() >= 0.1 - 1 / 196
        counts = np.histogram(masked, bins=10, range=(0.1 - 0.5 / 196, 0.5 - 0.5 / 196))[0]
        assert ((counts - len(masked) / 10) ** 2 / (len(masked) / 10)).sum() < CHI_SQUARE[9]


def test_random_masks_hide_exactly_the_count_everywhere_alike() -> None:
    rng = np.random.default_rng(2)
    masks = np.stack([random_mask(rng, (6, 5), 12.7) for _ in range(DRAWS)])
    assert (masks.sum((1, 2)) == 12).all()
    expected, chance = DRAWS * 12 / 30, 1 - 12 / 30
    assert ((masks.sum(0) - expected) ** 2 / (expected * chance)).sum() < 58.3  # 29 degrees of freedom, 1 in 1,000


@pytest.mark.parametrize("crops", [2, 7, 64])
def test_a_batch_has_half_its_crops_masked_and_one_in_each_stratum(crops: int) -> None:
    rng = np.random.default_rng(3)
    first, whole = 0, []
    for _ in range(DRAWS // crops):
        masks = batch_of_masks(rng, crops, DINOV2_GRID)
        counts = np.sort(masks.sum((1, 2)))
        unmasked = crops - crops // 2
        assert (counts[:unmasked] == 0).all() and (counts[unmasked:] > 0).all()
        first += masks[0].any()
        bounds = np.linspace(0.1, 0.5, crops // 2 + 1) * 256
        assert (counts[unmasked:] <= bounds[1:]).all()
        whole += (counts[unmasked:] >= np.floor(bounds[:-1])).tolist()
    assert np.mean(whole) > 0.98  # blocks that do not fit leave a mask short, never long
    assert abs(first / (DRAWS // crops) - (crops // 2) / crops) < 0.3  # the masked ones are not always the first


def test_every_batch_hides_about_as_much_as_the_others() -> None:
    rng = np.random.default_rng(4)
    shares = [batch_of_masks(rng, DINOV2_CROPS, DINOV2_GRID).mean() for _ in range(40)]
    assert abs(np.mean(shares) - 0.15) < 0.003 and np.std(shares) < 0.002  # unstratified: 0.007


def test_blocks_have_the_areas_and_the_aspects_of_the_recipe() -> None:
    """On a grid so fine that rounding to whole patches does not show."""
    rng = np.random.default_rng(5)
    blocks = [draw_block(rng, (4000, 4000), 4e4, 4e5) for _ in range(DRAWS)]
    sides = np.array([[rows.stop - rows.start, columns.stop - columns.start] for rows, columns in blocks])
    areas, aspects = sides.prod(1), sides[:, 0] / sides[:, 1]
    uniform = [(areas - 4e4) / 3.6e5, (np.log(aspects) - math.log(ASPECT[0])) / (2 * math.log(ASPECT[1]))]
    uniform += [np.array([block[axis].start for block in blocks]) / (4000 - sides[:, axis]) for axis in (0, 1)]
    for values in uniform:
        assert values.min() > -0.01 and values.max() < 1.01
        counts = np.histogram(values.clip(0, 1), bins=10, range=(0, 1))[0]
        assert ((counts - DRAWS / 10) ** 2 / (DRAWS / 10)).sum() < CHI_SQUARE[9]


@pytest.mark.parametrize(("smallest", "least"), [(4, 3), (16, 12)])  # DINOv2's; iBOT's on 14 x 14; before rounding
def test_no_block_is_smaller_than_the_recipe_has_it(smallest: int, least: int) -> None:
    rng = np.random.default_rng(6)
    drawn_blocks = [draw_block(rng, IBOT_GRID, smallest, 60) for _ in range(DRAWS)]
    areas = [(r.stop - r.start) * (c.stop - c.start) for r, c in filter(None, drawn_blocks)]
    assert least <= min(areas) <= smallest and 50 < max(areas) <= 70


def test_no_mask_hides_more_than_asked_for() -> None:
    rng = np.random.default_rng(7)
    for count in (0, 1, 3.5, 20, 97.9, 196):
        for _ in range(50):
            assert block_mask(rng, (14, 14), count, 4).sum() <= count
    assert not block_mask(rng, (14, 14), 0, 4).any()


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 8), (3, 5), (20, 4)])
def test_small_and_narrow_grids_end(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(8)
    for _ in range(50):
        assert ibot_mask(rng, grid).shape == grid
        assert batch_of_masks(rng, 4, grid).mean((1, 2)).max() <= 0.5


def test_a_mask_depends_on_its_seed_alone() -> None:
    def both(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        one = batch_of_masks(rng, 8, IBOT_GRID)
        return np.concatenate([one, [ibot_mask(rng, IBOT_GRID, shape, (0.3,), (0.2,)) for shape in module.SHAPES]])

    assert np.array_equal(both(1), both(1)) and not np.array_equal(both(1), both(2))


def test_wrong_settings_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'blob' is none of: block, random"):
        ibot_mask(rng, IBOT_GRID, "blob")
    with pytest.raises(ValueError, match=r"ratio 0\.1 with spread 0\.2"):
        ibot_mask(rng, IBOT_GRID, ratios=(0.1,), spreads=(0.2,))
    with pytest.raises(ValueError, match="1 mask ratios and 2 spreads"):
        ibot_mask(rng, IBOT_GRID, ratios=(0.1,))
    with pytest.raises(ValueError, match=r"share of masked images 1\.5"):
        batch_of_masks(rng, 4, IBOT_GRID, share=1.5)


def draw(shape: str) -> DrawMasks:
    return DrawMasks((8, 8), shape, (0.0, 0.3), (0.0, 0.2), 0.5, (0.1, 0.5))


@pytest.mark.parametrize("shape", [*module.SHAPES, "stratified"])
def test_the_masks_of_a_sample_depend_on_its_place_alone(shape: str) -> None:
    """Not on the process or the micro-batch that it falls to, nor on what was drawn before."""
    places = [Place(5, 2, 100 + p, 0, p, 8) for p in range(16)]
    first = [draw(shape)(place)["masks"] for place in places]
    hidden._strata_of_step.cache_clear()
    again = [draw(shape)(place)["masks"] for place in reversed(places)][::-1]
    assert np.array_equal(first, again) and first[0].shape == (2, 8, 8)
    other = [draw(shape)(Place(6, 2, 100 + p, 0, p, 8))["masks"] for p in range(16)]
    assert not np.array_equal(first, other)


def test_strata_are_those_of_the_whole_step() -> None:
    """Of eight samples' sixteen views, eight are masked, each in a stratum of its own, on however many processes."""
    for step in range(3):
        masks = np.concatenate(
            [draw("stratified")(Place(1, 0, p, 0, p, 8))["masks"] for p in range(8 * step, 8 * step + 8)]
        )
        counts = np.sort(masks.sum((1, 2)))
        assert (counts[:8] == 0).all() and (counts[8:] <= np.linspace(0.1, 0.5, 9)[1:] * 64).all() and counts[8] > 0
