"""Video: masks travel with the patches they belong to; J and F on masks whose scores are known."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.video import first_labels, full_labels, masks, propagate, propagate_video
from dino_tower.eval.video_scores import boundary_accuracy, frame_statistics, region_similarity

GRID = (10, 12)


def published_form(
    frame: torch.Tensor, context: torch.Tensor, labels: torch.Tensor, radius: int, k: int, temperature: float
) -> torch.Tensor:
    """All patches against all patches of all frames, then a mask: dense, as the published code computes it."""
    h, w = frame.shape[:2]
    queries, keys = F.normalize(frame.flatten(0, 1), dim=1), F.normalize(context.flatten(1, 2), dim=2)
    weight = (queries @ keys.transpose(1, 2) / temperature).exp()  # [T, queries, keys]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], dim=1)
    near = (place[:, None] - place[None]).abs().amax(-1) <= radius
    weight = (weight * near).permute(0, 2, 1).flatten(0, 1)
    weight = weight.where(weight >= weight.topk(k, dim=0).values[-1], 0.0)
    weight = weight / weight.sum(0)
    return (labels.flatten(2).permute(1, 0, 2).flatten(1) @ weight).reshape(-1, h, w)


@pytest.mark.parametrize(("radius", "k", "frames"), [(3, 5, 3), (1, 5, 2), (12, 1, 4), (2, 60, 1)])
def test_tiles_give_what_the_dense_form_gives(radius: int, k: int, frames: int) -> None:
    rng = torch.Generator().manual_seed(radius)
    frame, context = torch.randn(*GRID, 16, generator=rng), torch.randn(frames, *GRID, 16, generator=rng)
    labels = torch.rand(frames, 3, *GRID, generator=rng)
    ours = propagate(frame, context, labels, radius, k)
    torch.testing.assert_close(ours, published_form(frame, context, labels, radius, k, 0.1), atol=1e-5, rtol=1e-5)


def test_still_scenes_tie_and_all_ties_count() -> None:
    """A still camera: the same patch in eight frames is equally near, and none may be dropped for its place in line."""
    still = torch.randn(*GRID, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.rand(8, 2, *GRID, generator=torch.Generator().manual_seed(1))
    ours = propagate(still, still.expand(8, -1, -1, -1), labels, radius=2, k=5, temperature=0.001)
    torch.testing.assert_close(ours, labels.mean(0), atol=1e-4, rtol=0)


def moving_square(frames: int = 8) -> tuple[list[torch.Tensor], torch.Tensor]:
    """A scene whose patches each have their own direction, and an object that moves right by a patch a frame.

    Features [h, w, D] of each frame, masks [T, 2, h, w].
    """
    rng = torch.Generator().manual_seed(3)
    kinds = 2 * torch.randn(2, 64, generator=rng)  # what is uncovered looks like the rest of the background
    background = kinds[0] + torch.randn(*GRID, 64, generator=rng)
    thing = kinds[1] + torch.randn(4, 4, 64, generator=rng)
    features, truth = [], torch.zeros(frames, 2, *GRID)
    for t in range(frames):
        frame = background.clone()
        frame[3:7, t : t + 4] = thing
        features.append(frame)
        truth[t, 1, 3:7, t : t + 4] = 1
    truth[:, 0] = 1 - truth[:, 1]
    return features, truth


def test_a_seeing_tower_follows_and_a_blind_one_does_not() -> None:
    features, truth = moving_square()
    rng = torch.Generator().manual_seed(4)
    blind = [torch.randn(*GRID, 64, generator=rng) for _ in features]
    scores = []
    for frames in (features, blind):
        found = [truth[0], *propagate_video(frames, truth[0], previous=3, radius=4)]
        object_masks = torch.stack([one.argmax(0) == 1 for one in found])
        counted = object_masks[1:-1], truth[1:-1, 1]
        scores.append((float(region_similarity(*counted).mean()), float(boundary_accuracy(*counted).mean())))
    assert scores[0] == (1.0, 1.0)
    assert scores[1][0] < 0.3
    assert sum(scores[1]) / 2 < 0.6


def test_context_is_the_first_frame_and_the_last_ones() -> None:
    """The object is seen in frame 0 and then hidden for longer than the memory: only frame 0 can bring it back."""
    features, truth = moving_square(6)
    hidden = [features[0]] + [torch.roll(features[5], 6, dims=0)] * 4 + [features[0]]
    found = list(propagate_video(hidden, truth[0], previous=2, radius=None))
    assert len(found) == 5
    assert torch.equal(found[-1].argmax(0), truth[0].argmax(0))


def test_first_mask_on_the_grid() -> None:
    mask = torch.zeros(32, 48)
    mask[:16, 16:32] = 1
    mask[17:, :] = 2
    labels = first_labels(mask, (2, 3), objects=2)
    assert labels.argmax(0).tolist() == [[0, 1, 0], [2, 2, 2]]
    assert labels.sum(0).unique().tolist() == [1.0]
    with pytest.raises(ConfigError, match="need 0 to 1"):
        first_labels(mask, (2, 3), objects=1)


def test_full_size_masks_stretch_faded_objects() -> None:
    labels = torch.stack([torch.full((4, 4), 0.6), torch.zeros(4, 4)])
    labels[0, 0, 0], labels[1, 1:3, 1:3] = 0.7, 0.3
    assert masks(labels, (8, 8), stretch=False).sum() == 0
    assert masks(labels, (8, 8))[3, 3] == 1
    # A channel that is the same everywhere: the published code divides 0 by 0, and NaN wins every argmax.
    flat = full_labels(torch.stack([torch.full((2, 2), 0.5), torch.eye(2)]), (4, 4))
    assert bool(flat.isfinite().all())


def test_region_and_boundary_by_hand() -> None:
    truth = torch.zeros(3, 100, 100)
    truth[:, 20:60, 20:60] = 1
    shifted = torch.roll(truth, 1, dims=2)  # one pixel: within the tolerance of ceil(0.008 * 141) = 2
    assert region_similarity(shifted, truth).tolist() == pytest.approx([39 / 41] * 3)
    assert boundary_accuracy(shifted, truth).tolist() == [1.0] * 3
    assert boundary_accuracy(torch.roll(truth, 30, dims=2), truth)[0] < 0.6
    nothing = torch.zeros_like(truth)
    assert region_similarity(nothing, nothing).tolist() == [1.0] * 3
    assert boundary_accuracy(nothing, nothing).tolist() == [1.0] * 3
    assert boundary_accuracy(nothing, truth).tolist() == [0.0] * 3
    void = torch.roll(truth, 1, dims=2) != truth
    assert region_similarity(shifted, truth, void).tolist() == [1.0] * 3


def test_decay_is_first_quarter_minus_last() -> None:
    mean, recall, decay = frame_statistics(torch.linspace(1, 0, 9))
    assert (mean, recall) == (0.5, pytest.approx(4 / 9))
    assert decay == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(1, 2, 3, 3)}, "need [h, w, D]"),
        ({"context": torch.zeros(2, 4, 4, 8)}, "need [h, w, D]"),
        ({"neighbourhood": "round"}, "choices: circle, square"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    given = {"features": torch.ones(4, 4, 8), "context": torch.ones(1, 4, 4, 8), "labels": torch.ones(1, 2, 4, 4)}
    with pytest.raises(ConfigError) as error:
        propagate(**(given | change))
    assert message in str(error.value)
