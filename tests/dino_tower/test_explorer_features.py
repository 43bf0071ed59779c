"""Features in 8 bits: a cosine of the page is the tower's cosine within the error that the page states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_tower.explorer.features import pack, unpack


def pictures(width: int, rank: int, seed: int = 0) -> list[Tensor]:
    """Patches [h, w, width] of three pictures with a common mean and `rank` directions of falling size."""
    rng = torch.Generator().manual_seed(seed)
    axes = torch.randn(rank, width, generator=rng) * torch.linspace(2, 0.2, rank)[:, None]
    mean = 3 * torch.randn(width, generator=rng)
    return [
        torch.randn(h, w, rank, generator=rng) @ axes + mean + 0.02 * torch.randn(h, w, width, generator=rng)
        for h, w in ((9, 12), (12, 7), (10, 10))
    ]


def cosines(patches: list[Tensor]) -> Tensor:
    flat = torch.cat([F.normalize(part.flatten(0, 1), dim=-1) for part in patches])
    return flat @ flat.T


def test_the_stated_error_is_the_error() -> None:
    patches = pictures(48, 20)
    packed = pack(patches)
    gap = (cosines(patches) - cosines(unpack(packed))).abs()
    assert packed.largest == pytest.approx(float(gap.max()), abs=1e-6)
    n = len(gap)
    assert packed.pairs == n * (n - 1) // 2
    assert packed.mean == pytest.approx(float(gap.triu(1).double().sum()) / packed.pairs, rel=1e-4)
    assert packed.largest < 0.02
    assert [codes.shape[:2] for codes in packed.codes] == [part.shape[:2] for part in patches]
    assert {str(codes.dtype) for codes in packed.codes} == {"int8"}


def test_many_patches_are_compared_once_each_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    patches = pictures(32, 12)
    whole = pack(patches)
    monkeypatch.setattr("dino_tower.explorer.features.CHUNK", 37)
    parts = pack(patches)
    assert (parts.largest, parts.pairs) == (pytest.approx(whole.largest, abs=1e-6), whole.pairs)
    assert parts.mean == pytest.approx(whole.mean, rel=1e-5)


def test_no_more_numbers_than_the_error_asks_for() -> None:
    simple, rich = pack(pictures(96, 6)), pack(pictures(96, 90))
    assert len(simple.scales) == 16
    assert len(simple.scales) < len(rich.scales) <= 96
    assert rich.largest < 0.02
    loose = pack(pictures(96, 90), wanted=0.3)
    assert len(loose.scales) < len(rich.scales)


def test_no_more_bytes_than_there_is_room_for() -> None:
    patches = pictures(96, 90)
    packed = pack(patches, most_bytes=292 * 40)
    assert len(packed.scales) == 40
    assert packed.largest > 0.02  # and says what that costs
    assert sum(codes.nbytes for codes in packed.codes) <= 292 * 40


def test_a_patch_is_like_itself() -> None:
    for part in unpack(pack(pictures(64, 30))):
        assert (part * part).sum(-1).sub(1).abs().max() < 1e-5


def test_features_without_any_length_are_like_nothing() -> None:
    patches = [torch.zeros(2, 3, 8), torch.ones(2, 2, 8)]
    dead, alive = unpack(pack(patches))
    assert float(dead.abs().max()) == 0
    assert float((alive[0, 0] * alive[1, 1]).sum()) == pytest.approx(1, abs=1e-5)


def test_one_patch_is_enough() -> None:
    packed = pack([torch.tensor([[[3.0, 4.0]]])])
    assert packed.codes[0].shape == (1, 1, 2)
    assert packed.largest < 0.01
