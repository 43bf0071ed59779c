"""The loss with its last layer, forward and backward, and its peak memory, against the published form.

K 65,536 prototypes, bottleneck 256, batch 16, 2 + 8 views, fp32. The baseline is composed here from plain PyTorch as
main_dino.py does it: a weight-normed linear layer on all views, then the double loop over pairs of views with a
softmax of the teacher and a log-softmax of the student.

    python tests/benchmarks/bench_loss.py            # the rows, printed
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_tower.pretrain.heads import Prototypes
from dino_tower.pretrain.losses import dino_loss

VIEWS, BATCH, BOTTLENECK, PROTOTYPES = 10, 16, 256, 65536
ROUNDS = 5


def inputs() -> tuple[Tensor, Prototypes, Tensor]:
    """Unit vectors [V, B, d], the last layer, and the teacher's centred probabilities [2, B, K]."""
    torch.manual_seed(0)
    layer = Prototypes(BOTTLENECK, PROTOTYPES)
    z = F.normalize(torch.randn(VIEWS, BATCH, BOTTLENECK), dim=-1).requires_grad_()
    return z, layer, (torch.randn(2, BATCH, PROTOTYPES) / 0.5).softmax(-1)


def published(z: Tensor, layer: Prototypes, targets: Tensor) -> Tensor:
    """The double loop over pairs; the logits of all views are there at once."""
    student = (layer(z.flatten(0, 1)) / 0.1).chunk(VIEWS)
    total, pairs = torch.zeros(()), 0
    for t, target in enumerate(targets):
        for v, view in enumerate(student):
            if v != t:
                total = total + torch.sum(-target * F.log_softmax(view, dim=-1), dim=-1).mean()
                pairs += 1
    return total / pairs


def ours(z: Tensor, layer: Prototypes, targets: Tensor) -> Tensor:
    """As the loop calls it."""
    return dino_loss(z, layer.weight(), targets)


FORMS = {"published": published, "ours": ours}


def milliseconds(form: str, z: Tensor, layer: Prototypes, targets: Tensor) -> float:
    """One forward and backward."""
    start = time.perf_counter()
    FORMS[form](z, layer, targets).backward()
    seconds = time.perf_counter() - start
    z.grad = layer.weight_v.grad = None
    return 1000 * seconds


def peak(form: str) -> None:
    """In a process of its own: MiB that one forward and backward needs beyond its inputs, the gradients among them."""
    data = inputs()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports and inputs
    start = kilobytes("VmHWM")
    FORMS[form](*data).backward()
    print((kilobytes("VmHWM") - start) / 1024)


def kilobytes(name: str) -> int:
    """A figure of this process as Linux counts it."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def main() -> None:
    """Print one JSON row for time and one for memory."""
    data = inputs()
    for form in FORMS:
        milliseconds(form, *data)
    times = [{form: milliseconds(form, *data) for form in FORMS} for _ in range(ROUNDS)]
    ratios = sorted(t["published"] / t["ours"] for t in times)
    shape = f"loss forward + backward, K {PROTOTYPES:,}, B {BATCH}, {VIEWS} crops"
    row = {
        "name": shape,
        "baseline": "published form",
        "ours_ms": statistics.median(t["ours"] for t in times),
        "baseline_ms": statistics.median(t["published"] for t in times),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "target": 2.5,
    }
    print(json.dumps(row))
    memory = {
        form: float(subprocess.run([sys.executable, __file__, form], capture_output=True, text=True, check=True).stdout)
        for form in FORMS
    }
    ratio = memory["published"] / memory["ours"]
    row = {"name": f"peak memory of {shape}", "baseline": "published form", "unit": "MiB"}
    row |= {"ours_ms": memory["ours"], "baseline_ms": memory["published"]}
    print(json.dumps(row | {"ratio": ratio, "low": ratio, "high": ratio, "target": 3.0}))


if __name__ == "__main__":
    peak(sys.argv[1]) if len(sys.argv) > 1 else main()
