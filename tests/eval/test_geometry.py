"""Correspondence, depth, normals: perfect towers reach the optimum, blind ones chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.correspondence import (
    correct_points,
    counted,
    homography_errors,
    match_points,
    patch_centres,
)
from dino_tower.eval.depth import (
    aligned,
    bilinear,
    depth_from_bins,
    depth_metrics,
    gradient_loss,
    sig_loss,
)
from dino_tower.eval.depth_head import depth_input, fit_depth
from dino_tower.eval.normals import fit_normals, normal_metrics
from dino_tower.eval.raw import RawPixels
from dino_tower.eval.stats import score

GRID, PATCH = (10, 12), 14


def content(seed: int = 0) -> torch.Tensor:
    return torch.randn(*GRID, 32, generator=torch.Generator().manual_seed(seed))


def test_points_of_a_shifted_picture() -> None:
    """The picture moved by (2, 3) patches: a seeing tower finds every point, a blind one about one in 120."""
    first = content()
    second = torch.roll(first, (2, 3), dims=(0, 1))
    centres = patch_centres(GRID, PATCH)
    inside = (centres[:, 0] < 9 * PATCH) & (centres[:, 1] < 8 * PATCH)
    truth = centres[inside] + torch.tensor([3.0, 2.0]) * PATCH
    found = match_points(first, second, centres[inside], PATCH)
    assert correct_points(found, truth, 1.0).all()
    blind = match_points(content(1), content(2), centres[inside], PATCH)
    assert correct_points(blind, truth, 140, alpha=0.05).double().mean() < 0.1


def test_the_answer_is_a_patch_centre_so_small_thresholds_measure_the_grid() -> None:
    points = torch.tensor([[0.0, 0.0], [13.0, 13.0], [167.0, 139.0], [500.0, -3.0]])
    found = match_points(content(), content(), points, PATCH)
    assert found.tolist() == [[6.5, 6.5], [6.5, 6.5], [160.5, 132.5], [160.5, 6.5]]
    assert not correct_points(found[:1], points[:1], 9.0, alpha=1.0)
    assert correct_points(found[:1], points[:1], 9.3, alpha=1.0)


def test_strict_and_inclusive_limits() -> None:
    found, truth = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert not correct_points(found, truth, 30, 0.1).any()
    assert correct_points(found, truth, 30, 0.1, inclusive=True).all()


def test_per_image_and_per_point_differ() -> None:
    pairs = counted([torch.tensor([True]), torch.tensor([True, False, False, False]), torch.zeros(0)])
    assert score(pairs.per_point) == pytest.approx(2 / 5)
    assert score(pairs.per_image) == pytest.approx((1 + 1 / 4) / 2)


def test_homography_pairs() -> None:
    first = content()
    second = torch.roll(first, (2, 3), dims=(0, 1))
    shift = torch.tensor([[1.0, 0, 3 * PATCH], [0, 1, 2 * PATCH], [0, 0, 1]])
    size = (GRID[0] * PATCH, GRID[1] * PATCH)
    errors = homography_errors(first, second, shift, PATCH, size)
    assert len(errors) == 8 * 9  # patches that left the picture are not asked for
    assert float(errors.max()) < 1e-3
    half = homography_errors(first, second, shift + torch.tensor([[0, 0, 7.0], [0, 0, 0], [0, 0, 0]]), PATCH, size)
    assert float(half.max()) == pytest.approx(7.0, abs=1e-3)
    assert float((homography_errors(content(1), content(2), shift, PATCH, size) < PATCH).double().mean()) < 0.15
    with pytest.raises(ConfigError, match="correspondence"):
        match_points(first, second, torch.ones(3), PATCH)


def depths(images: int = 3) -> torch.Tensor:
    return 0.5 + 8 * torch.rand(images, 1, 24, 32, generator=torch.Generator().manual_seed(0))


def test_perfect_depth_and_the_best_blind_guess() -> None:
    truth = depths()
    perfect = depth_metrics(truth, truth)
    assert all(float(perfect[name].min()) == 1.0 for name in ("a1", "a2", "a3"))
    others = ("abs_rel", "rmse", "log_10", "rmse_log", "silog", "sq_rel", "mae")
    assert all(float(perfect[name].abs().max()) < 1e-6 for name in others)
    blind = depth_metrics(truth.mean((1, 2, 3), keepdim=True).expand_as(truth), truth)
    torch.testing.assert_close(blind["rmse"], truth.double().std((1, 2, 3), correction=0), rtol=1e-6, atol=0)
    doubled = depth_metrics(2 * truth, truth, high=100.0)
    assert doubled["abs_rel"].tolist() == pytest.approx([1.0] * 3)
    assert doubled["log_10"].tolist() == pytest.approx([math.log10(2)] * 3)
    assert float(doubled["silog"].max()) < 1e-4
    torch.testing.assert_close(aligned(2 * truth + 1, truth), truth.double(), atol=1e-4, rtol=0)
    assert torch.equal(aligned(torch.ones_like(truth), truth), torch.ones_like(truth).double())


def test_pixels_without_depth_do_not_count() -> None:
    truth = depths()
    holes = truth.clone()
    holes[:, :, ::2] = 0
    wrong_in_holes = truth.clone()
    wrong_in_holes[:, :, ::2] = 5
    assert depth_metrics(wrong_in_holes, holes)["rmse"].max() < 1e-6
    assert depth_metrics(truth, torch.zeros_like(truth))["rmse"].isnan().all()


def test_eigen_crop_and_range() -> None:
    truth = torch.full((1, 480, 640), 2.0)
    found = truth.clone()
    found[:, :45] = found[:, 471:] = 9.0
    found[:, :, :41] = found[:, :, 601:] = 9.0
    assert float(depth_metrics(found, truth, eigen_crop=True)["rmse"]) < 1e-6
    assert float(depth_metrics(found, truth)["rmse"]) > 1
    assert float(depth_metrics(torch.full_like(truth, 50.0), torch.full_like(truth, 10.0))["rmse"]) < 1e-6
    assert depth_metrics(truth, torch.full_like(truth, 11.0))["rmse"].isnan().all()
    with pytest.raises(ConfigError, match="480 x 640 pictures, not 24 x 32"):
        depth_metrics(depths(), depths(), eigen_crop=True)
    with pytest.raises(ConfigError, match="need one size"):
        depth_metrics(depths(1), depths())


def test_bins_and_losses() -> None:
    logits = torch.full((1, 256, 2, 2), -5.0)
    assert depth_from_bins(logits).flatten().tolist() == pytest.approx([(0.001 + 10) / 2] * 4, rel=1e-4)
    logits[:, 255] = 1e6
    assert depth_from_bins(logits).flatten().tolist() == pytest.approx([10.0] * 4, rel=1e-3)
    truth = depths().double()
    assert float(sig_loss(truth, truth)) == 0.0
    scaled = sig_loss((truth + 1e-3) * math.e - 1e-3, truth)  # a wrong scale costs sqrt(0.15) of its logarithm only
    assert float(scaled) == pytest.approx(0.15**0.5, rel=1e-6)
    assert float(gradient_loss((truth + 1e-3) * math.e - 1e-3, truth)) == pytest.approx(0, abs=1e-9)
    one_by_one = [float(gradient_loss(truth[i] * 0 + 3, truth[i])) for i in range(3)]
    assert float(gradient_loss(truth * 0 + 3, truth)) == pytest.approx(np.mean(one_by_one))
    with pytest.raises(ConfigError, match="fewer than two pixels"):
        sig_loss(truth, torch.zeros_like(truth))
    assert bilinear(truth.float(), (48, 64)).shape == (3, 1, 48, 64)


def seen_depth(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [40, 5, 6, 12] and depth [40, 1, 20, 24], one a picture: a feature tells it, or all are noise."""
    rng = torch.Generator().manual_seed(0)
    far = 1 + 8 * torch.rand(40, 1, 1, generator=rng).expand(-1, 5, 6)
    features = torch.randn(40, 5, 6, 12, generator=rng)
    if kind == "seeing":
        features[..., 3] = far
    return features, far.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]


def test_depth_head_on_known_features() -> None:
    errors = {}
    for kind in ("seeing", "blind"):
        features, truth = seen_depth(kind)
        head = fit_depth(features[:30], truth[:30], bins=32, learning_rates=(1e-2, 0.1), steps=120)
        errors[kind] = float(depth_metrics(head.predict(features[30:], (20, 24)), truth[30:])["rmse"].mean())
        assert head.validation[head.learning_rate] == min(head.validation.values())
    guess = float((truth - truth.mean()).abs().mean())  # what the mean depth is off by, a picture on average
    assert errors["seeing"] < 0.4 * guess < 0.8 * guess < errors["blind"]
    assert depth_input(torch.ones(2, 3, 4, 5), torch.zeros(2, 5)).shape == (2, 3, 4, 10)
    with pytest.raises(ConfigError, match="two or more"):
        fit_depth(torch.ones(1, 2, 2, 3), torch.ones(1, 1, 4, 4))


def test_depth_of_raw_pixels_whose_whole_is_wider_than_its_patches() -> None:
    """The floor of raw pixels ended a benchmark: its 768 numbers of the whole picture did not fit 50 of a patch."""
    (found,) = RawPixels().layers(torch.rand(2, 3, 32, 48), 1)
    joined = depth_input(found.patches, found.cls)
    assert joined.shape == (2, 2, 3, 50 + 768)
    assert torch.equal(joined[..., :50], found.patches) and torch.equal(joined[1, 1, 2, 50:], found.cls[1])


def test_normal_head_on_known_features() -> None:
    rng = torch.Generator().manual_seed(0)
    grid = F.normalize(torch.randn(30, 3, 1, 1, generator=rng).expand(-1, -1, 5, 6), dim=1)  # one plane a picture
    truth = grid.repeat_interleave(4, 2).repeat_interleave(4, 3)
    seeing = torch.cat([grid.permute(0, 2, 3, 1), torch.randn(30, 5, 6, 4, generator=rng)], dim=-1)
    blind = torch.randn(30, 5, 6, 7, generator=rng)
    rmse = {}
    for kind, patches in (("seeing", seeing), ("blind", blind)):
        head = fit_normals(patches[:20], truth[:20], strengths=(1e-3, 10.0))
        rmse[kind] = float(normal_metrics(head.predict(patches[20:], (20, 24)), truth[20:])["rmse"].mean())
    assert rmse["seeing"] < 2
    assert rmse["blind"] > 60
    with pytest.raises(ConfigError, match="multiples"):
        fit_normals(seeing, truth[:, :, :18])


def test_normals() -> None:
    truth = torch.zeros(2, 3, 8, 8)
    truth[:, 2] = 1
    tilted = truth.clone()
    tilted[:, 0] = math.tan(math.radians(20))
    assert normal_metrics(5 * truth, truth)["d1"].tolist() == [1.0, 1.0]
    off = normal_metrics(tilted, truth)
    assert (off["d1"].tolist(), off["d2"].tolist()) == ([0.0, 0.0], [1.0, 1.0])
    assert off["rmse"].tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    random = torch.randn(2, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    chance = normal_metrics(random, torch.randn(2, 3, 200, 200, generator=torch.Generator().manual_seed(1)))
    assert chance["d3"].tolist() == pytest.approx([(1 - math.cos(math.radians(30))) / 2] * 2, abs=0.005)
    valid = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    assert normal_metrics(truth, truth, valid)["rmse"].isnan().all()
    with pytest.raises(ConfigError, match="normals"):
        normal_metrics(truth[:, :2], truth[:, :2])
