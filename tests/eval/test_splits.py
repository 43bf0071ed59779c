"""Splits: nothing chosen on the test set, no image counted twice."""

from __future__ import annotations

import pytest
import torch

from dino_tower.errors import ConfigError
from dino_tower.eval.splits import few_shot, held_out, shard


def test_few_shot_takes_as_many_of_each_class() -> None:
    labels = torch.arange(60) % 4
    chosen = few_shot(labels, 5, seed=3)
    assert labels[chosen].bincount().tolist() == [5] * 4
    assert len(chosen.unique()) == 20
    assert not torch.equal(chosen, few_shot(labels, 5, seed=4))
    with pytest.raises(ConfigError, match="class 2 has 1 images; 2 are asked for"):
        few_shot([0, 0, 2, 1, 1], 2)


def test_held_out_slice_has_every_class_and_shares_no_image() -> None:
    labels = torch.cat([torch.zeros(100), torch.ones(20), torch.tensor([2.0])]).long()
    fit, validation = held_out(labels, 0.1)
    assert labels[validation].bincount(minlength=3).tolist() == [10, 2, 0]
    assert torch.equal(torch.cat([fit, validation]).sort().values, torch.arange(121))
    _, one = held_out([0, 1, 2])
    assert len(one) == 1 or len(held_out([0, 0, 1])[1]) == 1
    for share, labels_ in ((0.0, [0, 1]), (1.0, [0, 1]), (0.1, [0])):
        with pytest.raises(ConfigError, match="held-out slice"):
            held_out(labels_, share)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_image_is_read_once_by_any_number_of_processes(processes: int) -> None:
    shares = [shard(10, process, processes) for process in range(processes)]
    gathered = torch.cat(shares)
    assert torch.equal(gathered.sort().values, torch.arange(10))
    with pytest.raises(ConfigError, match=f"process {processes} of {processes}"):
        shard(10, processes, processes)
