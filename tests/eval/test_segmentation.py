"""Segmentation: what mIoU counts, and heads on a set where the right answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.clustering import confusion, k_means, many_to_one, matched_areas, one_to_one
from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.extraction import DATA, GRIDS
from dino_tower.eval.in_context import balanced_sample, build_memory, full_size, in_context, memory_of, patch_labels
from dino_tower.eval.linear_segmentation import fit_segmentation
from dino_tower.eval.miou import areas, joined, miou_parts, segmentation_score
from dino_tower.eval.sliding import slide, windows
from dino_tower.eval.stats import of_values, score
from dino_tower.eval.task import Split
from dino_tower.eval.tasks.in_context import IN_CONTEXT
from dino_tower.eval.view import Rows

CLASSES, GRID, PATCH = 4, 6, 4


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    """40 label pictures [40, 24, 24] of rectangles that end at patch borders, with some void."""
    rng = torch.Generator().manual_seed(0)
    grid = torch.zeros(40, GRID, GRID, dtype=torch.int64)
    for image in grid:
        for label in range(1, CLASSES):
            y, x = torch.randint(0, GRID - 2, (2,), generator=rng).tolist()
            image[y : y + 3, x : x + 3] = label
    full = grid.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    full[:, :1] = 255
    return full


def features_of(labels: torch.Tensor, kind: str) -> torch.Tensor:
    """[B, 6, 6, 16]: a tower that sees the class of a patch, or one that sees noise."""
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(len(labels), GRID, GRID, 16, generator=rng)
    if kind == "blind":
        return noise
    directions = 8 * torch.randn(CLASSES, 16, generator=rng)
    return directions[labels[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]] + 0.2 * noise


def nearest_up(scores: torch.Tensor) -> torch.Tensor:
    """Class of each pixel without blending at patch borders, where a perfect tower then has no error."""
    return scores.argmax(-1).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)


def miou_of(prediction: torch.Tensor, target: torch.Tensor) -> float:
    return segmentation_score(areas(prediction, target, CLASSES)).mean_iou


def majority(labels: torch.Tensor) -> float:
    """mIoU of always saying the commonest class: what a blind head ends at."""
    return miou_of(torch.zeros_like(labels), labels)


@pytest.mark.parametrize("solver", ["lbfgs", "ridge"])
def test_linear_head_on_known_features(labels: torch.Tensor, solver: str) -> None:
    train, test = labels[:20], labels[20:]
    seeing, blind = features_of(labels, "seeing"), features_of(labels, "blind")
    head = fit_segmentation(seeing[:20], train, CLASSES, solver=solver)
    assert miou_of(nearest_up(head.scores(seeing[20:])), test) == 1.0
    assert miou_of(head.predict(seeing[20:], (24, 24)), test) > 0.75  # blended at borders, where bilinear must choose
    chance = fit_segmentation(blind[:20], train, CLASSES, solver=solver)
    assert miou_of(nearest_up(chance.scores(blind[20:])), test) == pytest.approx(majority(test), abs=0.05)


def test_in_context_on_known_features(labels: torch.Tensor) -> None:
    soft = patch_labels(labels, (GRID, GRID), CLASSES)
    for kind, low, high in (
        ("seeing", 1.0, 1.0),
        ("blind", majority(labels[20:]) - 0.08, majority(labels[20:]) + 0.08),
    ):
        patches = features_of(labels, kind)
        found = in_context(build_memory(patches[:20], soft[:20]), patches[20:], k=30 if kind == "seeing" else 400,
                           temperature=0.02 if kind == "seeing" else 1.0)  # fmt: skip
        assert low <= miou_of(nearest_up(found), labels[20:]) <= high


@pytest.mark.parametrize("size", [None, 240])
def test_a_memory_of_pictures_one_by_one_is_that_of_all_at_once(labels: torch.Tensor, size: int | None) -> None:
    """Bit for bit: the patches of all pictures, of which few are kept, need not be in memory together."""
    patches, soft = features_of(labels, "blind")[:20], patch_labels(labels[:20], (GRID, GRID), CLASSES)
    soft[3] = 0  # a picture without any label
    rows, shares = patches.flatten(1, 2), soft.flatten(1, 2)
    if size is not None:
        kept = balanced_sample(soft, size // 20, torch.Generator().manual_seed(5))
        rows, shares = (torch.stack([x[i, kept[i]] for i in range(20)]) for x in (rows, shares))
    known = shares.flatten(0, 1).sum(1) > 0
    each = None if size is None else size // 20
    found = memory_of(zip(patches, soft, strict=True), each, torch.Generator().manual_seed(5))
    assert torch.equal(found.features, F.normalize(rows.flatten(0, 1)[known], dim=1))
    assert torch.equal(found.labels, shares.flatten(0, 1)[known])
    again = build_memory(patches, soft, size, torch.Generator().manual_seed(5))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_patches_that_are_not_remembered_are_never_in_memory_together(
    labels: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All patches of a large training set were stacked before 100,000 of them were chosen: tens of GB."""
    np.save(tmp_path / DATA, features_of(labels, "seeing").flatten(0, 2).numpy())
    np.save(tmp_path / GRIDS, np.array([(GRID, GRID)] * len(labels), np.int32))
    picture = Image.new("RGB", (GRID * PATCH, GRID * PATCH))
    items = [Item(str(i), picture, mask_reader=one.to(torch.uint8).numpy) for i, one in enumerate(labels)]
    data = Dataset("set", "made", "test", "hand", items, frozenset({"masks"}), regions=tuple("abcd"))
    stack = Rows.stack

    def one_by_one(rows: Rows, places: Sequence[int]) -> torch.Tensor:
        assert len(places) == 1, f"{len(places)} pictures at once"
        return stack(rows, places)

    monkeypatch.setattr(Rows, "stack", one_by_one)
    monkeypatch.setattr("dino_tower.eval.tasks.in_context.MEMORY", 40 * 12)
    view: Any = SimpleNamespace(rows=lambda data: Rows([tmp_path]))
    found = IN_CONTEXT.run(view, Split(data, data), 0)
    assert score(found.parts["miou"]) > 0.75  # blended at borders, where bilinear must choose


def test_clusters_on_known_features(labels: torch.Tensor) -> None:
    for kind, low, high in (("seeing", 1.0, 1.0), ("blind", 0.0, 0.35)):
        patches = features_of(labels, kind)
        _, nearest = k_means(patches.flatten(0, 2), CLASSES, restarts=5)
        found = nearest.reshape(40, GRID, GRID).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        table = confusion(found, labels, CLASSES, CLASSES)
        score = segmentation_score(matched_areas(table, one_to_one(table.sum(0)))).mean_iou
        assert low <= score <= high


def test_many_clusters_flatter_many_to_one(labels: torch.Tensor) -> None:
    """With a cluster for each patch noise is "segmented" perfectly: always say which matching was used."""
    ids = torch.arange(40 * GRID * GRID).reshape(40, GRID, GRID).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    table = confusion(ids, labels, 40 * GRID * GRID, CLASSES)
    assert segmentation_score(matched_areas(table, many_to_one(table.sum(0)))).mean_iou == 1.0
    assert segmentation_score(matched_areas(table, one_to_one(table.sum(0)))).mean_iou < 0.1


def test_k_means_finds_the_best_partition_and_survives_equal_rows() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = torch.eye(3) * 10
    rows = centres[torch.arange(90) % 3] + 0.1 * torch.randn(90, 3, generator=rng)
    found, nearest = k_means(rows, 3, normalise=False)
    torch.testing.assert_close(found.sort(0).values, centres.sort(0).values, atol=0.1, rtol=0)
    assert all(len(nearest[i::3].unique()) == 1 for i in range(3))
    assert k_means(torch.ones(9, 4), 3)[1].shape == (9,)
    for rows in (torch.ones(2, 4), torch.full((9, 4), torch.nan)):
        with pytest.raises(ConfigError, match="k-means"):
            k_means(rows, 3)


def test_void_pixels_leave_both_sums() -> None:
    truth = torch.tensor([[[0, 0, 1, 255], [0, 0, 1, 255]]])
    found = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    assert segmentation_score(areas(found, truth, 2)).mean_iou == 1.0
    as_class = areas(found, truth.where(truth != 255, 0), 2, void=None)
    assert segmentation_score(as_class).mean_iou == pytest.approx((4 / 6 + 2 / 4) / 2)


def test_absent_classes_and_those_only_predicted() -> None:
    truth = torch.zeros(1, 2, 4, dtype=torch.int64)
    found = truth.clone()
    found[0, :, 3] = 1
    counts = segmentation_score(areas(found, truth, 3))
    assert counts.iou[:2].tolist() == [0.75, 0.0]
    assert math.isnan(float(counts.iou[2]))
    assert counts.mean_iou == pytest.approx(0.375)
    assert float(counts.iou.nan_to_num(0).mean()) == pytest.approx(0.25)  # the absent class as 0


def test_shrunken_labels_forget_thin_things() -> None:
    """A line one pixel wide that the prediction misses: it costs at full size, and is gone from shrunken labels."""
    truth = torch.zeros(1, 16, 16, dtype=torch.int64)
    truth[0, :, 5] = 1
    blind = torch.zeros_like(truth)
    assert segmentation_score(areas(blind, truth, 2)).mean_iou < 0.5
    assert segmentation_score(areas(blind[:, ::4, ::4], truth[:, ::4, ::4], 2)).mean_iou == 1.0
    with pytest.raises(ConfigError, match="scale the prediction up"):
        areas(blind[:, ::4, ::4], truth, 2)


def test_images_are_summed_before_the_ratio() -> None:
    small, large = torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 20, 20, dtype=torch.int64)
    counts = joined([areas(small + 1, small, 2), areas(large, large, 2)])
    assert counts.intersection.shape == (2, 2)
    assert segmentation_score(counts).iou[0] == pytest.approx(400 / 404)
    assert score(miou_parts(counts)) == pytest.approx(segmentation_score(counts).mean_iou)
    assert score(of_values((counts.intersection[:, 0] / counts.union[:, 0]).numpy())) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (torch.full((1, 2, 2), 9), torch.zeros(1, 2, 2), "prediction ids run from 9 to 9; need 0 to 2"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 3), "label ids run from 3 to 3; need 0 to 2, or 255"),
        (torch.zeros(2, 2), torch.zeros(1, 2, 2), "scale the prediction up"),
    ],
)
def test_mistakes_are_named(found: torch.Tensor, truth: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        areas(found, truth, 3)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_soft_labels_of_a_patch() -> None:
    target = torch.tensor([[[0, 0, 255, 255], [1, 2, 255, 255], [1, 255, 0, 0], [1, 1, 0, 0]]])
    soft = patch_labels(target, (2, 2), 3)[0]
    assert soft[0, 0].tolist() == [0.5, 0.25, 0.25]
    assert soft[0, 1].tolist() == [0, 0, 0]
    assert soft[1, 0].tolist() == [0, 1, 0]  # void counts for no class: as class 0 this would be 1/4
    with pytest.raises(ConfigError, match="multiples"):
        patch_labels(target, (3, 2), 3)
    memory = build_memory(torch.randn(1, 2, 2, 5), patch_labels(target, (2, 2), 3))
    assert len(memory.features) == 3  # the patch without a label teaches nothing


def test_sampling_prefers_rare_classes(labels: torch.Tensor) -> None:
    soft = torch.zeros(50, 6, 6, 2)
    soft[..., 0] = 1.0
    soft[:, 2, 3] = torch.tensor([0.0, 1.0])
    kept = balanced_sample(soft, 6, torch.Generator().manual_seed(0))
    assert float((kept == 2 * 6 + 3).any(1).double().mean()) > 0.9  # one patch of 36: uniform sampling keeps 1/6
    with pytest.raises(ConfigError, match="memory size"):
        balanced_sample(soft, 40)


def test_the_strength_is_chosen_on_training_images(labels: torch.Tensor) -> None:
    patches = features_of(labels, "blind")
    head = fit_segmentation(patches[:20], labels[:20], CLASSES, strengths=(0.01, 1.0), share=0.2)
    assert set(head.validation) == {0.01, 1.0}
    assert head.validation[head.strength] == max(head.validation.values())
    with pytest.raises(ConfigError, match="two or more"):
        fit_segmentation(patches[:1], labels[:1], CLASSES)


def test_windows_cover_every_pixel_once_or_more() -> None:
    for size in ((7, 20), (5, 5), (16, 33)):
        times = torch.zeros(size)
        for top, bottom, left, right in windows(*size, 8, 5):
            times[top:bottom, left:right] += 1
            assert (bottom - top, right - left) == (min(8, size[0]), min(8, size[1]))
        assert int(times.min()) >= 1
    picture = torch.randn(2, 3, 16, 33, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slide(lambda window: 2 * window, picture, 8, 5), 2 * picture)
    with pytest.raises(ConfigError, match="stride 9"):
        windows(10, 10, 8, 9)


def test_scores_go_up_to_the_label() -> None:
    scores = F.one_hot(torch.tensor([[[0, 1], [1, 0]]]), 2).float()
    assert full_size(scores, (4, 4))[0].diagonal().tolist() == [0, 0, 0, 0]
