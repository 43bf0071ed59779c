"""The published schedule of linear segmentation: its crops, its rates, and a head that learns by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower import load_tower
from dino_tower.errors import ConfigError
from dino_tower.eval import segmentation_schedule as schedule
from dino_tower.eval.datasets import open_dataset
from dino_tower.eval.miou import areas, joined, segmentation_score


def test_rates_are_those_of_the_published_run() -> None:
    rates = [schedule.rate_at(step, schedule.STEPS) for step in range(schedule.STEPS)]
    assert rates[0] == pytest.approx(1 / 1500, rel=1e-3)
    assert int(np.argmax(rates)) == 1499 and rates[1499] == pytest.approx(1 - 1499 / 40_000)
    assert rates[20_000] == pytest.approx(0.5) and rates[-1] < 1e-4
    short = [schedule.rate_at(step, 400) for step in range(400)]
    assert int(np.argmax(short)) == 14  # the warm-up keeps its share


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (40, 30)])
def test_crops_keep_picture_and_label_together(size: tuple[int, int]) -> None:
    """A picture whose red is its row's and green its column's class: after any crop the label says what is there."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    mask = (2 * (rows >= height / 2) + (columns >= width / 2)).astype(np.uint8)
    picture = np.stack([255 * (mask >> 1), 255 * (mask & 1), np.zeros_like(mask)], -1).astype(np.uint8)
    rng = np.random.default_rng(0)
    seen, compared = set(), 0
    for _ in range(12):
        crop, label = schedule.random_crop(Image.fromarray(picture), mask, 112, rng)
        assert crop.size == (112, 112) and label.shape == (112, 112) and label.dtype == torch.uint8
        pixels = np.asarray(crop).astype(int)
        truth = label.numpy()
        seen |= set(truth.reshape(-1).tolist())
        if {0, 3} <= set(truth.reshape(-1).tolist()):  # colours are distorted, but yellow stays brighter than black
            assert pixels.sum(-1)[truth == 3].mean() > pixels.sum(-1)[truth == 0].mean() + 50
            compared += 1
    assert seen == {0, 1, 2, 3} and compared > 0


def test_a_patch_of_14_is_shown_518_pixels() -> None:
    assert schedule.crop_side(14) == 518 and schedule.crop_side(16) == 512


def test_photometric_distortion_changes_colours_and_stays_in_range() -> None:
    rng = np.random.default_rng(1)
    grey = np.full((8, 8, 3), (200, 60, 120), np.uint8)
    found = np.stack([schedule.photometric(grey, rng)[0, 0] for _ in range(200)]).astype(int)
    assert (np.abs(found - (200, 60, 120)).max(0) > 25).all()
    assert (np.abs(found - (200, 60, 120)).sum(1) < 6).mean() > 0.02  # sometimes nothing is done


def test_a_head_learns_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty short steps on scenes: the head knows objects from ground, an untrained one does not; windows of a larger
    picture are joined at the label's size."""
    monkeypatch.setattr(schedule, "SIDE", 96)
    monkeypatch.setattr(schedule, "STRIDE", 64)
    monkeypatch.setattr(schedule, "RATE", 1e-2)
    tower = load_tower("builtin:scenes")
    whole = open_dataset("scenes", "train")
    things = [_two_classes(whole[i]) for i in range(12)]
    train = replace(whole, items=things, regions=("ground", "object"))
    losses: list[float] = []
    head = schedule.train_on_crops(tower, train, 2, steps=60, batch=4, progress=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5])

    def iou(one: torch.nn.Module) -> float:
        counts = []
        for item in things[:4]:
            truth = item.mask()
            found = schedule.predict_by_windows(tower, one, item.image(), truth.shape)
            assert found.shape == truth.shape
            counts.append(areas(found, truth, 2))
        return segmentation_score(joined(counts)).mean_iou

    torch.manual_seed(3)
    assert iou(head) > iou(schedule.make_head(tower.width, 2).eval()) + 0.1


def _two_classes(item):  # type: ignore[no-untyped-def]
    mask = (item.instances() > 0).astype(np.uint8)
    return replace(item, mask_reader=lambda: mask)


def test_too_little_to_learn_from_is_refused(tmp_path: Path) -> None:
    whole = open_dataset("scenes", "train")
    with pytest.raises(ConfigError, match="1 training pictures and 31 classes"):
        schedule.train_on_crops(load_tower("builtin:scenes"), replace(whole, items=[whole[0]]), 31, steps=1)
