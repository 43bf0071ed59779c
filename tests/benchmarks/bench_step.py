"""One whole training step of DINO on given crops, on all cores: ViT-S/16, 2 x 224 + 8 x 96, K 65,536, B 8, fp32.

Ours are the calls of pretrain/train.py in their order. The baseline is composed as the published training code has it
(main_dino.py::train_one_epoch), from timm's ViT-S/16 with drop path, the head and the loss of bench_loss.py, clipping
parameter by parameter, AdamW tensor by tensor and a teacher that is averaged tensor by tensor.
The second row is the share of a plain matrix product: the step's floating-point operations, as torch counts them, at
the speed of a 2,048 x 2,048 x 2,048 sgemm on as many threads.

    python tests/benchmarks/bench_step.py            # the rows, printed
    python tests/benchmarks/bench_step.py profile    # where the time of our step goes
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import timm
import torch
import torch.nn.functional as F
from bench_loss import PublishedLoss, published_layer
from paired import Row, row, show, turns
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.network.student_teacher import BatchStatistics, Student, update_teacher
from dino_tower.pretrain.objectives.objective import make_objective
from dino_tower.pretrain.objectives.term import Inputs, Rates
from dino_tower.pretrain.optim import CLIP, OPTIMISERS, groups_of, set_rates
from dino_tower.pretrain.settings import ComputeConfig, Config

BATCH, LOCALS, PROTOTYPES = 8, 8, 65536
LR, WEIGHT_DECAY, MOMENTUM, CLIP_AT, TEACHER_TEMPERATURE = 1e-4, 0.04, 0.996, 3.0, 0.04
ROUNDS = 5
SIDE = 2048
NAME = f"step, ViT-S/16, 2 x 224 + {LOCALS} x 96, K {PROTOTYPES:,}, B {BATCH}"


def crops() -> list[Tensor]:
    """Normalised views [B, 3, S, S], the two global ones first."""
    sizes = [224] * 2 + [96] * LOCALS
    return [
        torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)
    ]


def ours(attention: str = "sdpa") -> Callable[[], object]:
    """A step as the training loop makes it, with DINO's default settings."""
    config = Config(arch="vits16", compute=ComputeConfig(attention=attention))
    return step_of(config, Inputs(crops(), torch.zeros(BATCH, dtype=torch.int64)))


def step_of(config: Config, inputs: Inputs) -> Callable[[], object]:
    """A step of any objective, on given inputs."""
    network, teacher = make_networks(config, torch.device("cpu"), world=1)
    objective = make_objective(config)
    student = Student(network, objective)
    optimizer = OPTIMISERS[config.optim.name](groups_of(network, config.optim))
    statistics, rates = BatchStatistics(network, teacher), Rates(TEACHER_TEMPERATURE)

    def run() -> None:
        set_rates(optimizer, LR, WEIGHT_DECAY)
        targets = objective.targets(teacher, inputs, rates)
        loss = student(inputs, targets, rates)["loss"]
        loss.backward()
        norm = CLIP["per_parameter"](network.named_parameters(), CLIP_AT)
        assert torch.isfinite(loss + norm)
        statistics.keep()
        optimizer.step()
        objective.commit()
        update_teacher(teacher, network, MOMENTUM)
        optimizer.zero_grad(set_to_none=True)

    return run


class Published(nn.Module):
    """utils.py::MultiCropWrapper around a ViT of timm and vision_transformer.py::DINOHead."""

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "vit_small_patch16_224", num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path
        )
        self.mlp = nn.Sequential(
            nn.Linear(384, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)
        )
        self.last_layer = published_layer()

    def forward(self, views: list[Tensor]) -> Tensor:
        groups = [views[:2], views[2:]] if len(views) > 2 else [views]
        features = torch.cat([self.backbone(torch.cat(group)) for group in groups])
        return self.last_layer(F.normalize(self.mlp(features), dim=-1, p=2))


def published() -> Callable[[], object]:
    """A step as the published code makes it."""
    torch.manual_seed(0)
    student, teacher = Published(0.1), Published(0.0)
    teacher.load_state_dict(student.state_dict())
    for p in teacher.parameters():
        p.requires_grad = False
    criterion = PublishedLoss(2 + LOCALS)
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if name.endswith(".bias") or p.ndim == 1]
    decayed = [p for name, p in named if not (name.endswith(".bias") or p.ndim == 1)]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=WEIGHT_DECAY, foreach=False)
    views = crops()

    def run() -> None:
        teacher_output = teacher(views[:2])
        loss = criterion(student(views), teacher_output)
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        for _, p in named:
            norm = p.grad.data.norm(2)
            factor = CLIP_AT / (norm + 1e-6)
            if factor < 1:
                p.grad.data.mul_(factor)
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                theirs.data.mul_(MOMENTUM).add_((1 - MOMENTUM) * mine.detach().data)

    return run


def sgemm() -> Callable[[], object]:
    """Ten plain products."""
    a, b, c = (torch.randn(SIDE, SIDE) for _ in range(3))

    def run() -> None:
        for _ in range(10):
            torch.mm(a, b, out=c)

    return run


def operations() -> int:
    """Floating-point operations of one step. Attention is counted as plain products: torch's count skips the CPU's
    fused kernel. Which paths are dropped moves it by about one percent."""
    run = ours("eager")
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def rows() -> list[Row]:
    """Against the published step, and against a matrix product of as many operations."""
    count = operations()
    times = turns({"ours": ours(), "published": published(), "sgemm": sgemm()}, ROUNDS)
    for entry in times:
        entry["sgemm"] *= count / (10 * 2 * SIDE**3)
    product = f"sgemm of its {count / 1e9:.0f} GFLOP"
    return [
        row(NAME, "published step: timm ViT, per-tensor updates", [(t["ours"], t["published"]) for t in times], 1.25),
        row(NAME, product, [(t["ours"], t["sgemm"]) for t in times], 0.7),
        row("published step", product, [(t["published"], t["sgemm"]) for t in times], None),
    ]


def print_profile() -> None:
    """Operators of one step of ours by their own time."""
    run = ours()
    run()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    print_profile() if sys.argv[1:] == ["profile"] else show(rows())
