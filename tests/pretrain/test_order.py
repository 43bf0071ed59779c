"""An epoch is a pure function of (seed, epoch): for any number of ranks, for streams and for weighted mixtures."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import torch
from numbered import Numbers, number_views

from dino_tower.errors import ConfigError
from dino_tower.pretrain.loading.data import Batch, build_loader
from dino_tower.pretrain.loading.order import epoch_order, steps_in_epoch
from dino_tower.sources import Mixture, Source


def batches(source: Source, crops=number_views, **settings) -> list[Batch]:
    return list(build_loader(source, crops, **{"seed": 0, "batch_size": 4, "total_steps": 5, **settings}))


def ids(some: list[Batch]) -> list[str]:
    return [name for batch in some for name in batch.ids]


def test_weights_share_the_draws_and_leave_nothing_unseen() -> None:
    rare, common = Numbers(30, "rare"), Numbers(10, "common")
    mixture = Mixture([rare, common], (1.0, 3.0))
    first = epoch_order(mixture, 0, 0)
    assert len(first) == 40 and (first.indices < 30).sum() == 10
    drawn = Counter((int(i), int(r)) for i, r in zip(first.indices, first.repeats, strict=True))
    assert max(drawn.values()) == 1  # a sample that comes again is told apart, or its crops would come again too
    assert Counter(int(i) for i in first.indices if i >= 30) == dict.fromkeys(range(30, 40), 3)
    three = [int(i) for epoch in range(3) for i in epoch_order(mixture, 0, epoch).indices if i < 30]
    assert sorted(three) == list(range(30))
    places = np.flatnonzero(first.indices < 30)
    assert places[0] < 15 and places[-1] > 25  # mixed, not one source after the other
    read = batches(mixture, total_steps=10)
    assert Counter(name.split("/")[0] for name in ids(read)) == {"rare": 10, "common": 30}
    assert len({view.numpy().tobytes() for b in read for view in b.views[1]}) == 40


def test_a_stream_is_read_in_long_runs() -> None:
    sizes = [60, 50, 64, 40, 70, 30, 55, 45] * 2
    source = Numbers(sum(sizes), stretches=sizes, window=32)
    order = epoch_order(source, 0, 0).indices
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert order.tolist() != epoch_order(source, 0, 1).indices.tolist()
    shard = np.searchsorted(np.cumsum(sizes), order, side="right")
    opened = [set(shard[lane:600:4].tolist()) for lane in range(4)]
    for lane in range(4):  # two or four ranks open different shards
        assert not opened[lane] & set.union(*(opened[other] for other in range(4) if other != lane))
        rows, shards = order[lane:600:4], shard[lane:600:4]
        for start in range(0, len(rows) - 8, 8):  # the window of 32, shared by four lanes
            run = np.sort(rows[start : start + 8])
            assert np.diff(run).max() == 1 or len(set(shards[start : start + 8].tolist())) > 1
        assert (np.diff(rows) != 1).mean() > 0.5
    few = epoch_order(Numbers(30, stretches=[10, 10, 10], window=5), 0, 0).indices
    assert [len(set((few[start : start + 10] // 10).tolist())) for start in (0, 10, 20)] == [1, 1, 1]


def test_ten_million_samples_are_ordered_in_forty_megabytes() -> None:
    start = time.process_time()
    order = epoch_order(Numbers(10_000_000), 0, 0)
    assert order.indices.nbytes == 40_000_000 and order.repeats is None
    assert time.process_time() - start < 5
    assert np.bincount(order.indices[:1000] // 100_000, minlength=100).max() < 40
    assert (np.bincount(order.indices, minlength=10_000_000) == 1).all()


def test_an_epoch_is_a_permutation_and_its_tail_is_dropped() -> None:
    source = Numbers(50)
    read = batches(source, batch_size=4, total_steps=24)
    epochs = [ids(read[:12]), ids(read[12:])]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 48
    assert epochs[0] != epochs[1] and epochs[0] != [f"n{i}" for i in range(48)]
    assert ids(batches(source, seed=1, total_steps=12)) != epochs[0]
    assert [batch.epoch for batch in read] == [0] * 12 + [1] * 12
    short = batches(source, total_steps=6, steps_per_epoch=3)
    assert ids(short[:3]) == epochs[0][:12] and ids(short[3:]) == epochs[1][:12]


@pytest.mark.parametrize("world, batch_size, accumulate", [(2, 6, 1), (1, 4, 3), (3, 2, 2), (12, 1, 1), (4, 3, 1)])
def test_a_step_reads_the_same_samples_whatever_the_ranks(world: int, batch_size: int, accumulate: int) -> None:
    """A run may go on with another number of processes: the samples of each step stay, and their crops too."""
    for source in (Numbers(100), Numbers(100, stretches=[30, 20, 40, 10])):
        one = batches(source, batch_size=12, total_steps=10)
        ranks = [
            batches(source, batch_size=batch_size, rank=r, world=world, accumulate=accumulate, total_steps=10)
            for r in range(world)
        ]
        for step, whole in enumerate(one):
            parts = [rank[step * accumulate + micro] for rank in ranks for micro in range(accumulate)]
            assert sorted(ids(parts)) == sorted(whole.ids)
            crops = [torch.cat([part.views[1] for part in parts]).numpy(), whole.views[1].numpy()]
            assert sorted(view.tobytes() for view in crops[0]) == sorted(view.tobytes() for view in crops[1])
        epoch = [[name for batch in rank if batch.epoch == 0 for name in batch.ids] for rank in ranks]
        assert sum(map(len, epoch)) == len({name for names in epoch for name in names}) == 96


def test_crops_differ_between_epochs_samples_and_seeds() -> None:
    source = Numbers(8)
    seen = Counter(
        view.numpy().tobytes()
        for seed in (0, 1)
        for b in batches(source, seed=seed, total_steps=6)
        for view in b.views[1]
    )
    assert len(seen) == 2 * 24 and max(seen.values()) == 1


def test_too_few_images() -> None:
    with pytest.raises(ConfigError, match="7 images are fewer than one global batch of 8"):
        build_loader(Numbers(7), number_views, seed=0, batch_size=4, world=2, total_steps=1)
    assert steps_in_epoch(17, 8) == 2
