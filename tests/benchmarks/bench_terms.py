"""Sinkhorn-Knopp over two processes and KoLeo, against their published forms.

Sinkhorn: B 64 rows on each of two processes (gloo, one thread each), K 65,536, three iterations, CPU time of both. The
published form (dinov2/loss/dino_clstoken_loss.py::sinkhorn_knopp_teacher) exponentiates, all-reduces the total once and
the sums of the prototypes in each iteration. The file fails if ours is not finite where logits reach 500 times the
temperature, or if the published form is.
KoLeo: peak memory of forward and backward, B 4,096 and D 384, against the product of all pairs
(dinov2/loss/koleo_loss.py).

    python tests/benchmarks/bench_terms.py            # the rows, printed
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from bench_loss import peak
from paired import Row, row, show, turns
from torch import Tensor, nn

from dino_tower.pretrain.algorithms.koleo import koleo
from dino_tower.pretrain.algorithms.sinkhorn import sinkhorn

ROWS, PROTOTYPES, TEMPERATURE, WORLD, ROUNDS = 64, 65536, 0.04, 2, 15
QUOTIENT = 500  # logit / temperature
FEATURES, WIDTH = 4096, 384


@torch.no_grad()
def published_sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """dino_clstoken_loss.py::sinkhorn_knopp_teacher."""
    q = torch.exp(logits.float() / temperature).t()
    samples, prototypes = q.shape[1] * dist.get_world_size(), q.shape[0]
    total = torch.sum(q)
    dist.all_reduce(total)
    q /= total
    for _ in range(iterations):
        sums = torch.sum(q, dim=1, keepdim=True)
        dist.all_reduce(sums)
        q /= sums
        q /= prototypes
        q /= torch.sum(q, dim=0, keepdim=True)
        q /= samples
    q *= samples
    return q.t()


class PublishedKoLeo(nn.Module):
    """koleo_loss.py::KoLeoLoss."""

    def __init__(self) -> None:
        super().__init__()
        self.pdist = nn.PairwiseDistance(2, eps=1e-8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, eps=1e-8, p=2, dim=-1)
        with torch.no_grad():
            dots = torch.mm(x, x.t())
            dots.view(-1)[:: (x.shape[0] + 1)].fill_(-1)
            nearest = torch.max(dots, dim=1)[1]
        return -torch.log(self.pdist(x, x[nearest]) + 1e-8).mean()


def process(rank: int, store: str, results: str) -> None:
    """One of two; writes its times."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, WORLD), rank=rank, world_size=WORLD)
    logits = torch.randn(ROWS, PROTOTYPES, generator=torch.Generator().manual_seed(rank)) * 0.1
    assert (sinkhorn(logits, TEMPERATURE) - published_sinkhorn(logits, TEMPERATURE)).abs().max() < 1e-5
    large = logits * (QUOTIENT * TEMPERATURE / logits.abs().max())
    assert torch.isfinite(sinkhorn(large, TEMPERATURE)).all()
    assert not torch.isfinite(published_sinkhorn(large, TEMPERATURE)).all()

    runs = {
        "ours": partial(sinkhorn, logits, TEMPERATURE),
        "published": partial(published_sinkhorn, logits, TEMPERATURE),
    }
    times = turns(runs, ROUNDS, time.process_time)
    Path(f"{results}.{rank}").write_text(json.dumps(times))
    dist.destroy_process_group()


def sinkhorn_row() -> Row:
    """CPU time of both processes together."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, (f"{folder}/store", f"{folder}/times"), nprocs=WORLD)
        both = [json.loads(Path(f"{folder}/times.{rank}").read_text()) for rank in range(WORLD)]
    times = [{name: sum(one[name] for one in ranks) for name in ranks[0]} for ranks in zip(*both, strict=True)]
    name = f"Sinkhorn-Knopp, K {PROTOTYPES:,}, B {WORLD} x {ROWS}, two processes"
    return row(name, "published form", [(t["ours"], t["published"]) for t in times], 2.0)


def koleo_row() -> Row:
    """Peak memory beyond the features, their gradient included."""
    x = torch.randn(FEATURES, WIDTH).requires_grad_()
    published = PublishedKoLeo()
    assert torch.allclose(koleo(x), published(x), rtol=1e-5)

    def run(form: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def once() -> None:
            x.grad = None
            form(x).backward()

        return once

    memory = [(peak(run(koleo)), peak(run(published)))]
    return row(f"peak memory of KoLeo, B {FEATURES:,}, D {WIDTH}", "product of all pairs", memory, 1.5, unit="MiB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    show([koleo_row(), sinkhorn_row()])
