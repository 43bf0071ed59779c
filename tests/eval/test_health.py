"""Feature health on features whose health is known."""

from __future__ import annotations

import pytest
import torch

from dino_tower.errors import ConfigError
from dino_tower.eval.health import outliers, positional_r2, positional_variance, rank_me, shift_consistency


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_outliers_are_counted_where_they_are() -> None:
    patches = noise(6, 8, 8, 64)
    healthy = outliers(patches)
    assert healthy.rate < 0.001
    patches[2, 3, 4] *= 20
    patches[2, 0, 0] *= 15
    found = outliers(patches)
    assert found.rate == pytest.approx(2 / 384, abs=0.001)
    assert found.per_image.argmax() == 2
    assert int(found.histogram.sum()) == 384
    assert len(found.edges) == 65
    assert float(found.edges[-1]) == pytest.approx(float(patches.double().norm(dim=-1).max()))


def test_positions_are_read_from_features_that_hold_them() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    place = torch.stack([y, torch.zeros(8, 8)], dim=-1)  # the row, not the column
    patches = torch.cat([noise(40, 8, 8, 6), place.expand(40, -1, -1, -1) + 0.01 * noise(40, 8, 8, 2, seed=1)], dim=-1)
    down, across = positional_r2(patches[:20], patches[20:])
    assert down > 0.99
    assert abs(across) < 0.05
    assert max(positional_r2(noise(20, 8, 8, 6), noise(20, 8, 8, 6, seed=3))) < 0.02
    assert x.shape == y.shape


def test_position_measured_on_training_images_flatters() -> None:
    """With more features than patches of one image a linear map reads any place from noise."""
    few = noise(2, 5, 5, 80)
    assert min(positional_r2(few, few, strength=1e6)) > 0.9
    assert max(positional_r2(few, noise(2, 5, 5, 80, seed=5), strength=1e6)) < 0.3


def test_variance_of_the_mean_map() -> None:
    fixed = noise(1, 6, 6, 16)
    assert positional_variance(fixed.expand(5, -1, -1, -1)) == pytest.approx(1.0)
    assert positional_variance(noise(5, 6, 6, 16)) < 0.03  # uncorrected it would be 1/5
    assert positional_variance(noise(200, 6, 6, 16, seed=1) + fixed) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ConfigError, match="needs two or more"):
        positional_variance(fixed)


def test_rank() -> None:
    rows = noise(2000, 16)
    assert rank_me(rows) == pytest.approx(16, abs=0.1)
    assert rank_me(rows[:, :1] @ noise(1, 16)) == pytest.approx(1, abs=0.01)
    assert rank_me(rows[:, :4] @ torch.linalg.qr(noise(16, 4))[0].T) == pytest.approx(4, abs=0.05)


def test_shift_consistency() -> None:
    picture = noise(3, 10, 12, 8)
    moved = torch.roll(picture, (2, -3), dims=(1, 2))
    assert shift_consistency(picture, moved, (2, -3)).tolist() == pytest.approx([1.0] * 3)
    assert shift_consistency(picture, moved, (0, 0)).abs().max() < 0.2
    by_place = noise(1, 10, 12, 8).expand(3, -1, -1, -1)  # features that know the place only
    assert shift_consistency(by_place, by_place, (2, -3)).abs().max() < 0.2
    with pytest.raises(ConfigError, match="nothing overlaps"):
        shift_consistency(picture, moved, (10, 0))
    with pytest.raises(ConfigError, match=r"need \[B, h, w, D\]"):
        outliers(noise(3, 4, 5))
