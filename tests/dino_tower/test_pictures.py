"""Pictures show what they say: light where the attention is, one colour for one feature, stable through time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower.pictures import (
    attention_light,
    attention_picture,
    colour,
    foreground,
    foreground_picture,
    heads_picture,
    patch_similarity,
    pca_basis,
    pca_picture,
    pca_scores,
    sheet,
    similarity_picture,
)


def grey(width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), (120, 120, 120))


def two_things(seed: int = 0, n: int = 8, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [n, n, width] whose top-left quarter has another feature; and where that quarter is."""
    rng = torch.Generator().manual_seed(seed)
    thing = torch.zeros(n, n, dtype=torch.bool)
    thing[: n // 2, : n // 2] = True
    ground, figure = torch.randn(2, width, generator=rng)
    patches = torch.where(thing[..., None], figure, ground) + 0.1 * torch.randn(n, n, width, generator=rng)
    return patches, thing


def test_colours_run_from_dark_to_light_through_every_anchor() -> None:
    assert colour(np.array([0.0, 1.0, 7.0]), "viridis").tolist() == [[68, 1, 84], [253, 231, 37], [253, 231, 37]]
    brightness = colour(np.linspace(0, 1, 256)).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) > -1).all()
    assert brightness[-1] - brightness[0] > 240


def test_attention_is_light_where_it_points() -> None:
    attention = torch.zeros(3, 4, 6)
    attention[:, 1, 4] = 1.0
    picture = attention_picture(grey(), attention, size=240, contour=False)
    assert picture.size == (240, 160)
    pixels = np.asarray(picture, dtype=float).mean(-1)
    assert np.unravel_index(pixels.argmax(), pixels.shape)[0] // 40 == 1
    assert np.unravel_index(pixels.argmax(), pixels.shape)[1] // 40 == 4
    assert pixels[60, 180] > 1.5 * pixels[140, 20]


def test_contour_runs_around_the_mask_and_nowhere_else() -> None:
    attention = torch.zeros(4, 4)
    attention[1:3, 0:2] = 1.0  # touches the picture's left edge: must be closed there
    plain = np.asarray(attention_picture(grey(), attention, keep=1.0, size=80, contour=False), dtype=int)
    drawn = np.asarray(attention_picture(grey(), attention, keep=1.0, size=80), dtype=int)
    changed = (plain != drawn).any(-1)
    assert (drawn[20:60, 0] == 255).all()
    assert (drawn[20:60, 39] == 255).all()
    assert (drawn[20, 0:40] == 255).all()
    assert not changed[:20].any()
    assert not changed[60:].any()
    assert not changed[:, 40:].any()
    assert not changed[26:54, 6:34].any()


def test_attention_that_favours_nothing_is_dim_everywhere() -> None:
    even, pointed = torch.full((4, 4), 1 / 16), torch.zeros(4, 4)
    pointed[0, 0] = 1.0
    dim = attention_picture(grey(40, 40), even, size=64, contour=False).convert("L").getextrema()
    lit = attention_picture(grey(40, 40), pointed, size=64, contour=False).convert("L").getextrema()
    assert dim[1] - dim[0] <= 1
    assert dim[1] < lit[1] - 60


def test_attention_without_any_mass_is_a_dim_picture() -> None:
    assert attention_picture(grey(), torch.zeros(2, 4, 4), size=64).getextrema()[0][1] < 140


def test_pca_gives_one_colour_per_thing_over_all_images() -> None:
    patches, thing = two_things()
    first, second = patches, patches.flip(0)
    basis = pca_basis([first, second])
    one = np.asarray(pca_picture(first, basis, size=8), dtype=float)
    two = np.asarray(pca_picture(second, basis, size=8), dtype=float)
    assert np.array_equal(one[::-1], two)
    red = one[..., 0]
    assert red[thing.numpy()].min() > red[~thing.numpy()].max() + 100  # the rarer side is the bright one


def test_pca_does_not_depend_on_the_sign_of_the_features_or_the_order_of_images() -> None:
    patches, _ = two_things()
    other, _ = two_things(seed=1)
    basis = pca_basis([patches, other])
    scores = pca_scores(patches, basis)
    torch.testing.assert_close(pca_scores(-patches, pca_basis([-patches, -other])), scores)
    torch.testing.assert_close(pca_scores(patches, pca_basis([other, patches])), scores)


def test_components_are_the_leading_directions() -> None:
    patches = torch.randn(500, 12, generator=torch.Generator().manual_seed(3)) * torch.linspace(3, 0.1, 12)
    basis = pca_basis(patches)
    centred = patches.double() - patches.double().mean(0)
    _, values, _ = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(pca_scores(patches, basis).norm(dim=0), values[:3])
    torch.testing.assert_close(basis.components @ basis.components.T, torch.eye(3, dtype=torch.float64))


def test_an_anchor_keeps_colours_through_training() -> None:
    """Two directions of nearly equal variance change places between two steps: the picture must not."""
    rng = torch.Generator().manual_seed(5)
    scores = torch.randn(400, 3, generator=rng)
    before = scores * torch.tensor([2.0, 1.05, 1.0])
    after = -scores * torch.tensor([2.0, 1.0, 1.05])
    earlier = pca_scores(before, pca_basis(before))
    free, anchored = (pca_scores(after, pca_basis(after, anchor)) for anchor in (None, earlier))

    def agreement(now: torch.Tensor) -> list[float]:
        return [float(torch.corrcoef(torch.stack([now[:, c], earlier[:, c]]))[0, 1]) for c in range(3)]

    assert min(agreement(anchored)) > 0.95
    assert min(agreement(free)) < 0.95


def test_collapsed_features_are_grey() -> None:
    same = torch.full((4, 4, 6), 0.3) + 1e-9 * torch.randn(4, 4, 6)
    assert pca_picture(same, pca_basis(same), size=4).getcolors() == [(16, (128, 128, 128))]


def test_features_of_fewer_than_three_dimensions_have_a_picture() -> None:
    narrow = torch.rand(4, 4, 2, generator=torch.Generator().manual_seed(0))
    basis = pca_basis(narrow)
    assert basis.components.shape == (3, 2)
    assert set(np.asarray(pca_picture(narrow, basis, size=4))[..., 2].ravel()) == {128}


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite: False"):
        pca_basis(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="0 patches"):
        pca_basis(torch.zeros(0, 4))


def test_similarity_lights_what_is_alike_and_rings_what_was_asked() -> None:
    patches, thing = two_things()
    likeness = patch_similarity(patches, patches[0, 0])
    assert likeness[0, 0] == pytest.approx(1, abs=1e-5)
    assert likeness[thing].min() > likeness[~thing].max()
    ringed = np.asarray(similarity_picture(grey(80, 80), patches, (2, 2), size=160), dtype=int)
    plain = np.asarray(similarity_picture(grey(80, 80), patches, (2, 2), size=160, query=patches[2, 2]), dtype=int)
    rows, columns = np.nonzero((ringed != plain).any(-1))
    assert (rows.mean(), columns.mean()) == pytest.approx((50, 50), abs=1.5)


def test_maps_of_a_wrong_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"need \[h, w\] or \[heads, h, w\]"):
        attention_picture(grey(), torch.zeros(1, 2, 4, 4))


def test_sheet_places_every_picture() -> None:
    red, blue = Image.new("RGB", (10, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    whole = sheet([[red, blue], [blue]], gap=2)
    assert whole.size == (26, 18)
    assert whole.getpixel((3, 3)) == (255, 0, 0)
    assert whole.getpixel((19, 4)) == (0, 0, 255)
    assert whole.getpixel((7, 12)) == (0, 0, 255)
    assert whole.getpixel((19, 12)) == (255, 255, 255)
    assert sheet([[red]], ["input"]).height > sheet([[red]]).height
    with pytest.raises(ValueError, match="no pictures"):
        sheet([])


def test_the_foreground_is_the_side_that_keeps_off_the_borders() -> None:
    rng = torch.Generator().manual_seed(1)
    ground, figure = torch.randn(2, 16, generator=rng)
    thing = torch.zeros(2, 10, 12, dtype=torch.bool)
    thing[0, 3:7, 4:9] = True
    thing[1, 2:9, 1:11] = True  # more than half of its picture
    patches = torch.where(thing[..., None], figure, ground) + 0.1 * torch.randn(2, 10, 12, 16, generator=rng)
    for one in (patches, -patches):
        scores = foreground(list(one), pca_basis(list(one)))
        assert [bool(((score > 0) == here).all()) for score, here in zip(scores, thing, strict=True)] == [True, True]
    assert 0.2 < float(scores[0].max() - scores[0].min()) < 1.5  # 1 is the range between the outermost percents


def test_collapsed_features_have_no_foreground() -> None:
    same = torch.full((4, 4, 6), 0.3)
    (scores,) = foreground([same], pca_basis(same))
    assert scores.unique().tolist() == [0]
    assert foreground_picture(grey(), scores, 64).size == (64, 64)


def test_the_background_fades_and_the_foreground_stays() -> None:
    scores = -torch.ones(4, 6)
    scores[1:3, 2:4] = 1
    pixels = np.asarray(foreground_picture(grey(), scores, 240), dtype=int)
    assert (abs(pixels[80, 120] - 120) <= 1).all()
    assert (pixels[:20] > 230).all()


def test_light_is_relative_to_the_attention_of_its_own_map() -> None:
    peaked = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) + 5 * torch.eye(8)
    light = attention_light(peaked)
    torch.testing.assert_close(attention_light(peaked * 1e-3), light)
    assert float(light.max()) == 1
    assert float(attention_light(torch.ones(4, 4)).max()) == pytest.approx(1 / 3)


def test_heads_stand_beside_their_mean() -> None:
    attention = torch.rand(6, 4, 6, generator=torch.Generator().manual_seed(0))
    assert heads_picture(grey(), attention, size=60).size == (7 * 68 + 8, 40 + 16)
    assert heads_picture(grey(), attention.repeat(2, 1, 1), size=60).size == (5 * 68 + 8, 3 * 48 + 8)
