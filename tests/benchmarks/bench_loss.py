"""The loss with its last layer and its centre, forward and backward, and its peak memory, against the published form.

K 65,536 prototypes, bottleneck 256, batch 16, 2 + 8 views, one thread. The baseline is composed here from plain PyTorch
as the published training code has it: a weight-normalised linear layer on all views (vision_transformer.py::DINOHead),
then the centred softmax of the teacher, the double loop over pairs of views with a log-softmax for each, and the update
of the centre (main_dino.py::DINOLoss). Both start from unit vectors and the teacher's logits.

    python tests/benchmarks/bench_loss.py            # the rows, printed
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from functools import partial

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F
from paired import Row, row, show, turns
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dino_tower.pretrain.algorithms.centre import Centre
from dino_tower.pretrain.algorithms.heads import Prototypes
from dino_tower.pretrain.algorithms.losses import dino_loss

VIEWS, BATCH, BOTTLENECK, PROTOTYPES = 10, 16, 256, 65536
TEMPERATURE, TEACHER_TEMPERATURE, MOMENTUM = 0.1, 0.04, 0.9
ROUNDS = 9
NAME = f"loss forward + backward, K {PROTOTYPES:,}, B {BATCH}, {VIEWS} crops"


class PublishedLoss(nn.Module):
    """main_dino.py::DINOLoss on one process."""

    def __init__(self, views: int) -> None:
        super().__init__()
        self.views = views
        self.register_buffer("center", torch.zeros(1, PROTOTYPES))

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        student = (student_output / TEMPERATURE).chunk(self.views)
        teacher = F.softmax((teacher_output - self.center) / TEACHER_TEMPERATURE, dim=-1).detach().chunk(2)
        total, terms = torch.zeros(()), 0
        for t, target in enumerate(teacher):
            for v, view in enumerate(student):
                if v != t:
                    total = total + torch.sum(-target * F.log_softmax(view, dim=-1), dim=-1).mean()
                    terms += 1
        self.update_center(teacher_output)
        return total / terms

    @torch.no_grad()
    def update_center(self, teacher_output: Tensor) -> None:
        mean = torch.sum(teacher_output, dim=0, keepdim=True) / len(teacher_output)
        self.center = self.center * MOMENTUM + mean * (1 - MOMENTUM)


def published_layer() -> nn.Module:
    """The last layer of vision_transformer.py::DINOHead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and what the published code calls
        layer = nn.utils.weight_norm(nn.Linear(BOTTLENECK, PROTOTYPES, bias=False))
    layer.weight_g.data.fill_(1)
    layer.weight_g.requires_grad = False
    return layer


def published(z: Tensor, teacher: Tensor) -> Callable[[], float]:
    """One forward and backward of the published form; returns the loss."""
    layer = published_layer()
    layer.weight_v.data.copy_(directions())
    criterion = PublishedLoss(VIEWS)

    def run() -> float:
        z.grad = layer.weight_v.grad = None
        loss = criterion(layer(z.flatten(0, 1)), teacher)
        loss.backward()
        return loss.item()

    return run


def ours(z: Tensor, teacher: Tensor) -> Callable[[], float]:
    """The same as the training loop calls it."""
    layer, centre = Prototypes(BOTTLENECK, PROTOTYPES), Centre(PROTOTYPES, MOMENTUM)
    layer.weight_v.data.copy_(directions())

    def run() -> float:
        z.grad = layer.weight_v.grad = None
        targets = centre.targets(teacher.unflatten(0, (2, BATCH)), TEACHER_TEMPERATURE)
        centre.observe(teacher)
        loss = dino_loss(z, layer.weight_v, targets, TEMPERATURE, layer.weight_g)
        loss.backward()
        centre.commit()
        return loss.item()

    return run


def directions() -> Tensor:
    """The last layer before normalisation [K, d], the same for both."""
    return torch.randn(PROTOTYPES, BOTTLENECK, generator=torch.Generator().manual_seed(1)) / 16


def products() -> Callable[[], object]:
    """The three matrix products that both forms need, and nothing else."""
    rows, weight = torch.randn(VIEWS * BATCH, BOTTLENECK), torch.randn(PROTOTYPES, BOTTLENECK)
    logits, gradient = torch.empty(len(rows), PROTOTYPES), torch.empty_like(weight)

    def run() -> None:
        torch.mm(rows, weight.T, out=logits)
        torch.mm(logits, weight)
        torch.mm(logits.T, rows, out=gradient)

    return run


def in_bf16(run: Callable[[], object]) -> object:
    with torch.autocast("cpu", torch.bfloat16):
        return run()


def peak(run: Callable[[], object]) -> float:
    """MiB that tensors take at most during a run beyond what was there before, gradients included.

    Counted from the allocator's own events: exact, where the process's resident memory moves with malloc's habits.
    """
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest / 2**20


def rows() -> list[Row]:
    """Time in fp32, the share of it that is bare products, time in bf16, memory."""
    torch.manual_seed(0)
    z = F.normalize(torch.randn(VIEWS, BATCH, BOTTLENECK), dim=-1).requires_grad_()
    teacher = torch.randn(2 * BATCH, PROTOTYPES) * 0.06
    forms = {"ours": ours(z, teacher), "published": published(z, teacher)}
    first = {name: run() for name, run in forms.items()}
    assert abs(first["ours"] - first["published"]) < 1e-5 * first["published"], first
    times = turns({**forms, "products": products()}, ROUNDS, time.process_time)
    half = turns({name: partial(in_bf16, run) for name, run in forms.items()}, ROUNDS, time.process_time)
    memory = {name: peak(run) for name, run in forms.items()}
    return [
        row(NAME, "published form", [(t["ours"], t["published"]) for t in times], 2.5),
        row(f"{NAME}: bare products", "its three sgemm", [(t["ours"], t["products"]) for t in times], None),
        row("published form: bare products", "its three sgemm", [(t["published"], t["products"]) for t in times], None),
        row(f"{NAME}, bf16", "published form, bf16", [(t["ours"], t["published"]) for t in half], None),
        row(f"peak memory of {NAME}", "published form", [(memory["ours"], memory["published"])], 3.0, unit="MiB"),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    show(rows())
