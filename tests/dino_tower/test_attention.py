"""Attention masks and their overlap with objects, against the numbers of the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dino_tower.attention import Jaccard, jaccard, mass_mask, mean_jaccard
from dino_tower.errors import ConfigError

PARITY = Path(__file__).parents[1] / "parity" / "eval" / "attn_jaccard.npz"


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    with np.load(PARITY) as file:
        return {name: torch.from_numpy(np.atleast_1d(file[name])) for name in file.files}


def test_masks_are_those_of_the_reference(published: dict[str, torch.Tensor]) -> None:
    ours = mass_mask(published["attn"].unflatten(1, (8, 8)))
    theirs = published["mask_heads"].reshape(6, 8, 16, 8, 16)
    assert torch.equal(ours, theirs[:, :, 0, :, 0] > 0)


@pytest.mark.parametrize("name", ["ipvit", "dino54"])
def test_best_head_is_that_of_the_reference(published: dict[str, torch.Tensor], name: str) -> None:
    score = jaccard(published["attn"].unflatten(1, (8, 8)), published["target"], void_in_union=True)
    assert score.best_head == pytest.approx(float(published[name]), abs=1e-7)  # the reference divides in float32


def test_void_pixels_leave_the_union(published: dict[str, torch.Tensor]) -> None:
    """The published code tests a boolean mask against 255, so void never left its union."""
    attention, target = published["attn"].unflatten(1, (8, 8)), published["target"]
    theirs = jaccard(attention, target, void_in_union=True)
    ours = jaccard(attention, target)
    assert ours.best_head > theirs.best_head
    without = torch.where(target == 255, torch.zeros_like(target), target)
    assert jaccard(attention, without).best_head == pytest.approx(theirs.best_head)


def test_mask_is_the_smallest_set_with_the_mass() -> None:
    rng = torch.Generator().manual_seed(0)
    attention = torch.rand(3, 5, 4, 6, generator=rng)
    share = attention / attention.sum((-2, -1), keepdim=True)
    mask = mass_mask(attention)
    held = (share * mask).sum((-2, -1))
    assert bool((held >= 0.6 - 1e-9).all())
    smallest = torch.where(mask, share, torch.inf).amin((-2, -1))
    assert bool((held - smallest < 0.6).all())


def test_masks_at_the_ends() -> None:
    one = torch.zeros(2, 3)
    one[1, 2] = 5.0
    assert mass_mask(one).nonzero().tolist() == [[1, 2]]
    assert not mass_mask(torch.zeros(2, 3)).any()
    assert mass_mask(torch.ones(2, 3), keep=1.0).all()


def test_scores_by_hand() -> None:
    """Head 0 holds the left half, head 1 the right quarter column; the thing is the left half."""
    attention = torch.zeros(2, 2, 4)
    attention[0, :, :2] = 1.0
    attention[1, :, 3] = 1.0
    target = torch.zeros(8, 16, dtype=torch.int64)
    target[:, :8] = 3
    score = jaccard(attention, target, keep=1.0)
    assert score.best_head == 1.0
    assert score.mean_head == pytest.approx(0.5)
    assert score.head_average == pytest.approx(2 / 3)


def test_a_label_of_its_own_for_every_thing() -> None:
    attention = torch.zeros(1, 2, 2)
    attention[0, 0, 0] = 1.0
    target = np.array([[4, 0], [0, 9]])
    assert jaccard(attention, target).best_head == pytest.approx(0.5)
    assert jaccard(attention, target, background=None).best_head == pytest.approx(1 / 3)


def test_pictures_without_a_thing_are_left_out() -> None:
    nothing = jaccard(torch.ones(2, 2, 2), np.array([[0, 255], [0, 0]]))
    assert np.isnan(nothing).all()
    mean = mean_jaccard([nothing, Jaccard(0.2, 0.1, 0.4), Jaccard(0.4, 0.3, 0.0)])
    assert mean == pytest.approx((0.3, 0.2, 0.2))
    assert np.isnan(mean_jaccard([nothing])).all()
    assert np.isnan(mean_jaccard([])).all()


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"need \[heads, h, w\] and \[H, W\]"):
        jaccard(torch.ones(2, 2), np.zeros((4, 4), int))
    with pytest.raises(ConfigError, match="keep 60"):
        mass_mask(torch.ones(2, 2), keep=60)
    with pytest.raises(ConfigError, match=r"need \[\.\.\., h, w\]"):
        mass_mask(torch.ones(4))
