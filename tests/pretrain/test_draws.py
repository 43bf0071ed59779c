"""What a sample brings beside its views: what is drawn by its place in the data alone, and its caption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dino_tower.pretrain.loading.data import Batch, Beside, build_loader
from dino_tower.pretrain.loading.draws import Place
from dino_tower.sources import Sample, Source


class Captioned(Source):
    """Numbers in place of pictures, with captions for all but each seventh."""

    def __init__(self) -> None:
        self.name = "captioned"

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Sample:
        return Sample(b"", f"n{index}", text=None if index % 7 == 0 else f"number {index}")


def view(sample: Sample, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, 256, (2, 2, 3), np.uint8)]


def own(place: Place) -> dict[str, np.ndarray]:
    return {"own": np.array([place.index, place.slot, place.rng().integers(1000)])}


def shared(place: Place) -> dict[str, np.ndarray]:
    return {"shared": np.array(place.step_rng().integers(1000))}


def batches(**settings) -> list[Batch]:
    settings = {"seed": 3, "batch_size": 8, "total_steps": 3, "beside": Beside((own, shared)), **settings}
    return list(build_loader(Captioned(), view, **settings))


def rows(some: list[Batch]) -> dict[str, list[int]]:
    """By the sample's name; which one of its step and what was drawn for it."""
    return {
        name: [*mine, int(all_)]
        for batch in some
        for name, mine, all_ in zip(batch.ids, batch.drawn["own"].tolist(), batch.drawn["shared"], strict=True)
    }


def test_however_a_step_is_cut_each_sample_draws_the_same() -> None:
    """By workers, processes or accumulation, and after a pause."""
    whole = batches()
    assert whole[0].drawn["own"].shape == (8, 3) and whole[0].drawn["own"].dtype == torch.int64
    want = rows(whole)
    assert [rows([batch]).keys() == set(batch.ids) for batch in whole] == [True] * 3
    slots = [sorted(batch.drawn["own"][:, 1].tolist()) for batch in whole]
    assert slots == [list(range(8))] * 3
    assert [len(set(batch.drawn["shared"].tolist())) for batch in whole] == [1] * 3
    assert len({int(batch.drawn["shared"][0]) for batch in whole}) == 3
    assert rows(batches(workers=2)) == want
    assert rows(batches(batch_size=2, accumulate=4)) == want
    ranks = [batches(batch_size=4, world=2, rank=rank) for rank in range(2)]
    assert rows(ranks[0]) | rows(ranks[1]) == want
    assert rows(whole[2:]) == rows(batches(start_step=2))


def test_drawing_moves_neither_the_crops_nor_the_order() -> None:
    plain, drawn = batches(beside=Beside()), batches()
    for a, b in zip(plain, drawn, strict=True):
        assert a.ids == b.ids and torch.equal(a.views[0], b.views[0]) and a.drawn == {} and a.captions == []


def test_a_sample_without_caption_is_replaced_and_listed(tmp_path: Path) -> None:
    log = tmp_path / "skipped.jsonl"
    found = batches(beside=Beside(captions="first"), skipped_log=log, max_skipped=0.5)
    for batch in found:
        assert batch.captions == [f"number {name.removeprefix('n')}" for name in batch.ids]
    assert "no caption" in log.read_text() and all(int(name[1:]) % 7 for batch in found for name in batch.ids)
