"""Heads, losses and scores against what the benchmark of the same name computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dino_tower.adapters.dense_heads import HEADS, ClassHead, ConvHead, LinearHead, PyramidHead, depth_of, layers_for
from dino_tower.adapters.tasks import (
    VOID,
    Range,
    depth_loss,
    depth_row,
    largest_share,
    mean_iou,
    segment_loss,
    segment_row,
)
from dino_tower.eval.depth import depth_from_bins, depth_metrics, sig_loss
from dino_tower.eval.miou import areas, segmentation_score
from dino_tower.tokens import Tokens

METRES = Range(0.001, 10.0)


def seen(layers: int = 1, grid: tuple[int, int] = (4, 6), cls: bool = True) -> list[Tokens]:
    rng = torch.Generator().manual_seed(0)
    return [
        Tokens(torch.randn(2, *grid, 16, generator=rng), torch.randn(2, 16, generator=rng) if cls else None)
        for _ in range(layers)
    ]


@pytest.mark.parametrize(
    ("head", "layers", "shape"),
    [
        (ClassHead(16, 5, has_cls=True), 1, (2, 5)),
        (LinearHead(16, 5), 1, (2, 5, 4, 6)),
        (LinearHead(16, 5, with_cls=True), 1, (2, 5, 4, 6)),
        (ConvHead(16, 5, channels=8), 1, (2, 5, 8, 12)),
        (PyramidHead(16, 5, channels=8), 4, (2, 5, 16, 24)),
    ],
    ids=["class", "linear", "linear with class token", "conv", "pyramid"],
)
def test_shapes_and_every_parameter_is_used(head: torch.nn.Module, layers: int, shape: tuple[int, ...]) -> None:
    scores = head(seen(layers))
    assert scores.shape == shape
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


def test_a_tower_without_class_token_is_classified_by_its_mean_patch() -> None:
    head = ClassHead(16, 5, has_cls=False)
    tokens = seen(cls=False)
    assert torch.allclose(head(tokens), head.classifier(tokens[0].patches.mean((1, 2))))


def test_a_linear_head_sees_each_patch_alone() -> None:
    head, (tokens,) = LinearHead(16, 5), seen()
    moved = tokens.patches.clone()
    moved[:, 1, 2] += 1
    changed = (head([Tokens(moved, None)]) != head([tokens])).any(1)
    assert changed.sum() == 2 and bool(changed[:, 1, 2].all())


def test_one_picture_of_one_place_in_a_pyramid() -> None:
    """Group norm refused maps of one place whose groups were single channels: in training and out of it."""
    one = [Tokens(x.patches[:1], None) for x in seen(4)]
    assert bool(PyramidHead(16, 5, channels=8).eval()(one).isfinite().all())


@pytest.mark.parametrize("kind", HEADS)
def test_a_grid_of_any_shape_will_do(kind: str) -> None:
    head = HEADS[kind](16, 3)
    assert head(seen(len(layers_for(kind, 12)), grid=(1, 3))).shape[:2] == (2, 3)


def test_the_layers_of_a_pyramid() -> None:
    assert layers_for("pyramid", 12) == (3, 6, 9, 12) and layers_for("pyramid", 2) == (1, 1, 2, 2)
    assert layers_for("linear", 12) == (12,)


def test_depth_and_its_loss_are_those_of_the_benchmark() -> None:
    rng = torch.Generator().manual_seed(1)
    scores, truth = torch.randn(2, 16, 5, 6, generator=rng), 12 * torch.rand(2, 5, 6, generator=rng) - 1
    found = depth_from_bins(scores, 0.001, 10.0)
    assert torch.allclose(depth_of(scores, 0.001, 10.0), found[:, 0])
    inside = torch.where((truth > 0.001) & (truth <= 10), truth, 0.0)
    assert torch.allclose(depth_loss(scores, truth, METRES), sig_loss(found, inside[:, None]))
    row = depth_row(found[0, 0].numpy(), truth[0].numpy(), 0, METRES)
    score = depth_metrics(found[:1], truth[:1, None])
    assert row["rmse"] == pytest.approx(float(score["rmse"])) and row["a1"] == pytest.approx(float(score["a1"]))


def test_the_score_of_masks_is_that_of_the_benchmark() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 6, (3, 8, 9)).astype(np.uint8), rng.integers(0, 5, (3, 8, 9)).astype(np.uint8)
    truth[truth == 4] = VOID
    rows = [segment_row(a, b, 7, METRES) for a, b in zip(found, truth, strict=True)]
    expected = segmentation_score(areas(found, truth, 7))
    assert mean_iou(rows) == pytest.approx({"miou": expected.mean_iou, "pixel_accuracy": expected.pixel_accuracy})


def test_pixels_that_do_not_count_have_no_part_in_the_loss() -> None:
    scores = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[[0, VOID], [VOID, VOID]]])
    segment_loss(scores, labels, METRES).backward()
    assert scores.grad is not None and bool(
        (scores.grad.abs().sum(1)[0] > 0).flatten().tolist() == [True] + 3 * [False]
    )
    empty = torch.full((1, 2, 2), VOID)
    assert segment_loss(scores, empty, METRES) == 0 and depth_loss(scores, torch.zeros(1, 2, 2), METRES) == 0


def test_the_share_of_the_largest_answer() -> None:
    scores = torch.zeros(1, 2, 1, 4)
    scores[0, 1] = 1
    labels = torch.tensor([[[0, 0, 1, VOID]]])
    assert largest_share(scores, labels) == pytest.approx({"largest_answer": 1.0, "largest_label": 2 / 3})
    assert largest_share(scores, torch.zeros(1, 1, 4)) == {}
