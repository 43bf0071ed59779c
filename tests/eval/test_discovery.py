"""Object discovery, saliency: planted objects are found, noise is not, and the fast cut is the exact one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from dino_tower.errors import ConfigError
from dino_tower.eval.boxes import box_around, box_iou, component_at, corloc, largest_component
from dino_tower.eval.lost import lost
from dino_tower.eval.saliency import saliency
from dino_tower.eval.stats import of_values, score
from dino_tower.eval.tokencut import second_eigenvector, tokencut

GRID, PATCH = (12, 16), 16
SIZE = (GRID[0] * PATCH - 5, GRID[1] * PATCH - 3)


def scene(seed: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [12, 16, 32] of a picture with one object, and its box: seen, or drowned in noise."""
    rng = torch.Generator().manual_seed(seed)
    height, width = torch.randint(3, 6, (2,), generator=rng).tolist()
    top = int(torch.randint(0, GRID[0] - height + 1, (1,), generator=rng))
    left = int(torch.randint(0, GRID[1] - width + 1, (1,), generator=rng))
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    keys = 0.4 * torch.randn(*GRID, 32, generator=rng)
    if kind == "seeing":
        direction = torch.nn.functional.normalize(torch.randn(32, generator=rng), dim=0)
        keys = keys + torch.where(mask[..., None], 4 * direction, -4 * direction)
    return keys, box_around(mask, PATCH, SIZE)


@pytest.mark.parametrize("method", [lost, tokencut])
def test_seeing_towers_find_every_object_and_blind_ones_few(method) -> None:  # type: ignore[no-untyped-def]
    for kind, low, high in (("seeing", 1.0, 1.0), ("blind", 0.0, 0.2)):
        scenes = [scene(seed, kind) for seed in range(20)]
        found = [method(keys, PATCH, SIZE).box for keys, _ in scenes]
        hits = corloc(found, [box[None] for _, box in scenes])
        assert low <= score(of_values(hits)) <= high


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_lanczos_cuts_as_the_dense_solver_does(noise: float) -> None:
    """Against the published form: the generalised problem, solved densely."""
    rng = torch.Generator().manual_seed(int(noise * 10))
    regions = torch.zeros(14, 18, dtype=torch.int64)
    regions[3:9, 4:11], regions[10:, :5] = 1, 2
    keys = torch.randn(3, 48, generator=rng)[regions] + noise * torch.randn(14, 18, 48, generator=rng)
    ours = tokencut(keys, PATCH, (224, 288))
    rows = torch.nn.functional.normalize(keys.flatten(0, 1), dim=1)
    affinity = np.where((rows @ rows.T).numpy() > 0.2, 1.0, 1e-5)
    degree = np.diag(affinity.sum(1))
    vector = eigh(degree - affinity, degree, subset_by_index=[1, 1])[1][:, 0]
    vector *= np.sign(vector[np.abs(vector).argmax()])
    np.testing.assert_allclose(ours.eigenvector.flatten(), vector, atol=1e-6 * np.abs(vector).max())
    assert np.array_equal(ours.foreground.flatten(), vector > vector.mean())


def test_graphs_that_lanczos_does_not_settle_fall_back_on_the_dense_solver() -> None:
    """A chain of 400 patches: eigenvalues so near to each other that Lanczos gives up."""
    edges = np.eye(400) + np.eye(400, k=1) + np.eye(400, k=-1)
    vector = second_eigenvector(edges, 1e-9)
    affinity = np.where(edges == 0, 1e-9, edges)
    degree = np.diag(affinity.sum(1))
    exact = eigh(degree - affinity, degree, subset_by_index=[1, 1])[1][:, 0]
    np.testing.assert_allclose(np.abs(vector), np.abs(exact), atol=1e-5 * np.abs(exact).max())
    few = np.eye(5) + np.eye(5, k=1) + np.eye(5, k=-1)
    assert second_eigenvector(few, 1e-5).shape == (5,)


def test_equal_keys_are_cut_somewhere_without_an_error() -> None:
    """A tower that says the same of every patch: all eigenvalues but the first are equal, and Lanczos has no start."""
    cut = tokencut(torch.ones(10, 10, 4), PATCH, (160, 160))
    assert cut.mask.any()
    assert bool(cut.eigenvector.isfinite().all())


def test_the_object_is_the_part_with_the_seed() -> None:
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[0, :2], mask[3:, 3:], mask[1, 2] = True, True, True  # (1, 2) touches (0, 1) at a corner only
    assert component_at(mask, 0).sum() == 2
    assert component_at(mask, 3 * 6 + 4).sum() == 6
    assert not component_at(mask, 12).any()
    assert torch.equal(largest_component(mask), component_at(mask, 3 * 6 + 4))
    assert not largest_component(torch.zeros(2, 2)).any()
    assert box_around(component_at(mask, 3 * 6 + 4), 16, (78, 90)).tolist() == [48, 48, 90, 78]
    assert box_around(torch.zeros(2, 2), 16, (30, 32)).tolist() == [0, 0, 32, 30]


def test_corloc_counts_any_true_box_and_leaves_empty_images_out() -> None:
    box = torch.tensor([0, 0, 10, 10])
    truths = [torch.tensor([[50, 50, 60, 60], [0, 0, 10, 20]]), torch.tensor([[0, 0, 10, 21]]), torch.zeros(0, 4)]
    assert box_iou(box, truths[0]).tolist() == [0.0, 0.5]
    hits = corloc([box] * 3, truths)
    assert hits[:2].tolist() == [1.0, 0.0]
    assert np.isnan(hits[2])
    assert score(of_values(hits)) == 0.5
    with pytest.raises(ConfigError, match="one box an image"):
        corloc([box], truths)


@pytest.mark.parametrize("keys", [torch.ones(4, 4), torch.full((4, 4, 3), torch.nan)])
def test_keys_that_cannot_be_cut_are_named(keys: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="TokenCut"):
        tokencut(keys, 16, (64, 64))
    if keys.ndim == 2:
        with pytest.raises(ConfigError, match="LOST"):
            lost(keys, 16, (64, 64))


def test_saliency_of_known_maps() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = (torch.rand(30, 1, 8, 8, generator=rng) < 0.25).float()
    perfect = saliency(0.2 + 0.6 * truth, truth)
    assert (float(perfect.iou.mean()), float(perfect.accuracy.mean()), perfect.max_f) == (1.0, 1.0, 1.0)
    blind = saliency(torch.rand(30, 1, 8, 8, generator=rng), truth)
    everything = 1.3 * 0.25 / (0.3 * 0.25 + 1)  # precision 1/4, recall 1: what saying "all" gives
    assert blind.max_f == pytest.approx(everything, abs=0.06)
    assert float(blind.f.amax(1).mean()) > blind.max_f + 0.05  # a threshold for every image, chosen with the truth


def test_empty_maps_do_not_spoil_the_mean() -> None:
    """The published IoU divides 0 by 0 here, and one such image makes the whole mean NaN."""
    empty = saliency(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))
    assert empty.iou.tolist() == [1.0]
    assert bool(empty.f.isfinite().all())
    with pytest.raises(ConfigError, match="need one size"):
        saliency(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5))


def test_thresholds_are_those_of_255_passes() -> None:
    rng = torch.Generator().manual_seed(2)
    maps, truth = torch.rand(4, 9, 9, generator=rng), torch.rand(4, 9, 9, generator=rng) > 0.6
    ours = saliency(maps, truth.float())
    for i in (0, 77, 128, 254):
        mask = maps > i / 255
        both, found, true = ((x.flatten(1).sum(1).double()) for x in (mask & truth, mask, truth))
        p, r = torch.where(found > 0, both / found, 1.0), both / true
        torch.testing.assert_close(ours.f[:, i], torch.nan_to_num(1.3 * p * r / (0.3 * p + r), 0.0))
