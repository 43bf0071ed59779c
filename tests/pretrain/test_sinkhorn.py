"""Sinkhorn's targets: marginals, range, half precision, and several processes that act as one."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dino_tower.pretrain.algorithms.sinkhorn import sinkhorn


def logits(rows: int, prototypes: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, prototypes, generator=torch.Generator().manual_seed(0)) * scale


def test_rows_sum_to_one_and_columns_share_the_batch() -> None:
    p = sinkhorn(logits(96, 24, 0.1), 0.07, iterations=200)
    assert (p.sum(1) - 1).abs().max() < 1e-5
    assert (p.sum(0) - 96 / 24).abs().max() < 1e-4
    assert p.min() >= 0


def test_rows_sum_to_one_after_the_published_three_rounds() -> None:
    p = sinkhorn(logits(96, 24), 0.07)
    assert (p.sum(1) - 1).abs().max() < 1e-5


def test_a_prototype_that_all_prefer_is_shared_out() -> None:
    """The collapse to one prototype that a plain softmax would let stand."""
    x = logits(64, 16, 0.05)
    x[:, 3] += 1
    assert (x / 0.04).softmax(1).argmax(1).unique().tolist() == [3]
    assert len(sinkhorn(x, 0.04).argmax(1).unique()) == 16


@pytest.mark.parametrize("quotient", [88, 500, 5000])
def test_it_is_finite_where_the_published_form_overflows(quotient: float) -> None:
    x = logits(40, 300)
    x *= quotient * 0.04 / x.abs().max()
    p = sinkhorn(x, 0.04)
    assert torch.isfinite(p).all() and (p.sum(1) - 1).abs().max() < 1e-4
    want = log_domain(x.double(), 0.04)
    assert (sinkhorn(x.double(), 0.04) - want).abs().max() < 1e-12
    assert (p - want).abs().max() < 1e-6 * quotient


def log_domain(x: torch.Tensor, temperature: float) -> torch.Tensor:
    """Every half round in logarithms."""
    m = x / temperature
    for _ in range(3):
        m = m - m.logsumexp(0)
        m = m - m.logsumexp(1, keepdim=True)
    return m.exp()


def test_half_precision_is_computed_in_fp32() -> None:
    x = logits(20, 30)
    for kind in (torch.bfloat16, torch.float16):
        p = sinkhorn(x.to(kind), 0.04)
        assert p.dtype == torch.float32 and torch.equal(p, sinkhorn(x.to(kind).float(), 0.04))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(x, 0.04), sinkhorn(x.clone(), 0.04))
        inside = sinkhorn(x, 0.04)
    assert torch.equal(inside, sinkhorn(x, 0.04))


def test_it_leaves_the_logits_as_they_were() -> None:
    x = logits(20, 30)
    before = x.clone()
    sinkhorn(x, 1.0)
    sinkhorn(x.double(), 1.0)
    assert torch.equal(x, before)


def test_no_iteration_is_refused() -> None:
    with pytest.raises(ValueError, match="0 Sinkhorn iterations"):
        sinkhorn(logits(2, 3), 0.1, iterations=0)


@pytest.mark.parametrize("mine", [6, 0])  # of 12 rows: half of them, and none as with a rank that masked nothing
def test_two_processes_equal_one_with_the_joint_batch(tmp_path: Path, mine: int) -> None:
    x = logits(12, 50, 3.0)
    parts = (x[:mine], x[mine:])
    children = []
    for rank, part in enumerate(parts):
        child = os.fork()
        if child == 0:
            try:
                store = dist.FileStore(str(tmp_path / "store"), 2)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
                torch.save(sinkhorn(part, 0.04), tmp_path / f"{rank}.pt")
                dist.barrier()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    got = torch.cat([torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)])
    assert (got - sinkhorn(x, 0.04)).abs().max() <= 1e-6
