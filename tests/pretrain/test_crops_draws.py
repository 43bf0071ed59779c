"""Drawing the decisions: rates and distributions are the published ones, compared with torchvision's own samplers.

Every statistical test has a fixed seed and alpha 1e-4.
"""

from __future__ import annotations

import math
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dino_tower.errors import ConfigError
from dino_tower.pretrain.crops.views import (
    COLUMNS,
    JITTERS,
    ORDERS,
    CropsConfig,
    View,
    at_least,
    draw_views,
    make_views,
)

ALPHA = 1e-4
Z = 3.89  # two-sided normal quantile of ALPHA
WIDTH, HEIGHT = 500, 375


def ks(first: np.ndarray, second: np.ndarray) -> None:
    """Two-sample Kolmogorov-Smirnov test at ALPHA."""
    both = np.sort(np.concatenate([first, second]))
    ranks = [np.searchsorted(np.sort(sample), both, side="right") / len(sample) for sample in (first, second)]
    limit = math.sqrt(-math.log(ALPHA / 2) / 2 * (1 / len(first) + 1 / len(second)))
    assert np.abs(ranks[0] - ranks[1]).max() <= limit


def rate(hits: np.ndarray, chance: float) -> None:
    """The share of hits agrees with a probability at ALPHA (with 0 and 1: exactly)."""
    assert abs(np.mean(hits) - chance) <= Z * math.sqrt(chance * (1 - chance) / len(hits))


def chi_square(counts: np.ndarray) -> None:
    """Equally likely cells, at ALPHA (Wilson and Hilferty's normal approximation, one-sided)."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic <= freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.fixture(scope="module")
def draws() -> list[tuple[View, ...]]:
    """5,000 draws of two globals and one local."""
    rng = np.random.default_rng(2021)
    return [draw_views(CropsConfig(locals=1), WIDTH, HEIGHT, rng) for _ in range(5000)]


@pytest.mark.parametrize("group, scale", [(0, (0.4, 1.0)), (1, (0.4, 1.0)), (2, (0.05, 0.4))])
def test_boxes_are_distributed_as_torchvisions(
    group: int, scale: tuple[float, float], draws: list[tuple[View, ...]]
) -> None:
    torch.manual_seed(group)
    picture = torch.empty(3, HEIGHT, WIDTH)
    sample = transforms.RandomResizedCrop.get_params
    theirs = np.array([sample(picture, list(scale), [3 / 4, 4 / 3]) for _ in draws])[:, [1, 0, 3, 2]].astype(float)
    mine = np.array([views[group].box for views in draws], float)
    # Where a box just fits, its place is forced: a share of the room that is left, with a little noise against ties.
    noise = np.random.default_rng(0).uniform(size=(2, 2, len(draws)))
    for boxes, (across, down) in ((mine, noise[0]), (theirs, noise[1])):
        boxes[:, 0] = (boxes[:, 0] + across) / (WIDTH - boxes[:, 2] + 1)
        boxes[:, 1] = (boxes[:, 1] + down) / (HEIGHT - boxes[:, 3] + 1)
    ks(mine[:, 2] * mine[:, 3], theirs[:, 2] * theirs[:, 3])  # scale
    ks(mine[:, 2] / mine[:, 3], theirs[:, 2] / theirs[:, 3])  # ratio
    ks(mine[:, 0], theirs[:, 0])
    ks(mine[:, 1], theirs[:, 1])


def test_colour_factors_are_distributed_as_torchvisions(draws: list[tuple[View, ...]]) -> None:
    torch.manual_seed(3)
    ranges = ([0.6, 1.4], [0.6, 1.4], [0.8, 1.2], [-0.1, 0.1])
    theirs = [transforms.ColorJitter.get_params(*ranges) for _ in range(5000)]
    for group in range(3):
        mine = [dict(views[group].jitter) for views in draws if views[group].jitter]
        for column, name in enumerate(JITTERS, 1):
            ks(np.array([factors[name] for factors in mine]), np.array([row[column] for row in theirs]))
    orders = [tuple(JITTERS.index(name) for name, _ in views[0].jitter) for views in draws if views[0].jitter]
    chi_square(np.array([orders.count(order) for order in ORDERS]))


def test_operations_happen_as_often_as_published(draws: list[tuple[View, ...]]) -> None:
    for group, (blur, solarize) in enumerate(((1.0, 0.0), (0.1, 0.2), (0.5, 0.0))):
        views = [drawn[group] for drawn in draws]
        rate(np.array([view.flip for view in views]), 0.5)
        rate(np.array([view.jitter is not None for view in views]), 0.8)
        rate(np.array([view.grayscale for view in views]), 0.2)
        rate(np.array([view.blur is not None for view in views]), blur)
        rate(np.array([view.solarize is not None for view in views]), solarize)
        radii = np.array([view.blur for view in views if view.blur is not None])
        ks(radii, np.random.default_rng(group).uniform(0.1, 2.0, 5000))
        both = np.array([view.flip and view.grayscale for view in views])
        rate(both, 0.1)  # operations are drawn independently


def test_the_views_of_one_picture_are_independent(draws: list[tuple[View, ...]]) -> None:
    areas = np.array([[view.box[2] * view.box[3] for view in views] for views in draws], float)
    assert np.abs(np.corrcoef(areas.T)[np.triu_indices(3, 1)]).max() <= Z / math.sqrt(len(draws))


def test_boxes_that_do_not_fit_fall_back_to_torchvisions_centre() -> None:
    config = CropsConfig(global_scale=(0.9, 1.0), locals=0)
    for width, height in ((300, 20), (20, 300), (1000, 3)):
        torch.manual_seed(0)
        top, left, h, w = transforms.RandomResizedCrop.get_params(
            torch.empty(3, height, width), [0.9, 1.0], [3 / 4, 4 / 3]
        )
        assert draw_views(config, width, height, np.random.default_rng(0))[0].box == (left, top, w, h)


def test_boxes_stay_inside_any_picture() -> None:
    rng = np.random.default_rng(0)
    for width, height in [(1, 1), (1, 9), (9, 1), (2, 2), (3, 200), (17, 5), (4000, 3000)]:
        for _ in range(30):
            for view in draw_views(CropsConfig(locals=2), width, height, rng):
                left, top, w, h = view.box
                assert 0 <= left <= left + w <= width and 0 <= top <= top + h <= height and w > 0 < h


def test_switching_one_operation_off_leaves_the_other_decisions() -> None:
    full = draw_views(CropsConfig(), WIDTH, HEIGHT, np.random.default_rng(7))
    less = draw_views(CropsConfig(jitter_p=0, blur_p=(0, 0, 0)), WIDTH, HEIGHT, np.random.default_rng(7))
    assert [view._replace(jitter=None, blur=None) for view in full] == list(less)
    no_hue = draw_views(CropsConfig(jitter=(0.4, 0.4, 0.2, 0)), WIDTH, HEIGHT, np.random.default_rng(7))
    for view, other in zip(full, no_hue, strict=True):
        assert (other.jitter or ()) == tuple(step for step in view.jitter or () if step[0] != "hue")


def test_drawing_uses_only_its_own_generator_and_always_as_much_of_it() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for config in (CropsConfig(), CropsConfig(jitter_p=0, back_end="exact", global_scale=(0.99, 1.0))):
        rng, plain = np.random.default_rng(5), np.random.default_rng(5)
        views = draw_views(config, WIDTH, 40, rng)
        make_views(Image.new("RGB", (WIDTH, 40)), views, config)
        plain.random((10, COLUMNS))
        assert rng.random() == plain.random()
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_other_generators_draw_other_views() -> None:
    """In the published code every process has one seed and so the same augmentations; here each has its own stream."""
    first, second = (draw_views(CropsConfig(), WIDTH, HEIGHT, np.random.default_rng([0, rank])) for rank in (0, 1))
    assert all(a.box != b.box for a, b in zip(first, second, strict=True))


def test_views_are_plain_numbers_that_travel() -> None:
    views = draw_views(CropsConfig(), WIDTH, HEIGHT, np.random.default_rng(0))
    assert pickle.loads(pickle.dumps(views)) == views
    for view in views:
        for value in (view.size, *view.box, view.blur, view.solarize, *(factor for _, factor in view.jitter or ())):
            assert value is None or type(value) in (int, float)


def test_the_smallest_allowed_decode_leaves_every_crop_twice_its_view() -> None:
    rng = np.random.default_rng(0)
    for config in (CropsConfig(), CropsConfig(global_size=48, local_size=24), CropsConfig(locals=0)):
        width, height = at_least(config)
        assert at_least(CropsConfig("exact")) is None
        sides = [min(view.box[2:]) / view.size for _ in range(300) for view in draw_views(config, width, height, rng)]
        assert 1.98 <= min(sides) <= 2.6, "enough, and not wastefully more"


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"back_end": "fats"}, "did you mean 'fast'"),
        ({"global_scale": (0.0, 1.0)}, "crops.global_scale: .*0 < low <= high <= 1"),
        ({"local_scale": (0.4, 0.05)}, "crops.local_scale"),
        ({"ratio": (-1.0, 1.0)}, "crops.ratio"),
        ({"locals": -1}, "crops.locals: -1"),
        ({"local_size": 0}, "crops.local_size: 0"),
        ({"jitter": (0.4, 0.4, 0.2, 0.6)}, "hue at most 0.5"),
        ({"jitter_p": 1.5}, "crops.jitter_p: 1.5"),
        ({"blur_p": (1.0, -0.1, 0.5)}, "crops.blur_p"),
        ({"blur_radius": (2.0, 0.1)}, "crops.blur_radius"),
        ({"solarize_threshold": 300}, "crops.solarize_threshold: 300"),
    ],
)
def test_settings_that_cannot_be_used_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CropsConfig(**wrong)
