"""What several processes must agree on: faults and signals, logged means, and that one of them is gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from dino_tower.errors import ConfigError
from dino_tower.sources.workers import LostWorker


def join_after_restart(cpu: bool) -> None:
    """Form the process group of a run that torchrun has started again; does nothing at a first start.

    torchrun serves all its attempts from one store, under the same keys: a process that came up first read the address
    of a dead one there and waited for it for ever. Each attempt gets keys of its own.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not attempt or "RANK" not in os.environ or dist.is_initialized():
        return
    store, rank, world = next(dist.rendezvous("env://"))
    backend = "gloo" if cpu or not torch.cuda.is_available() else "nccl"
    store = dist.PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def lost_process(error: RuntimeError) -> ConfigError | None:
    """What to tell the user if this is how a process learns that another one of its job, or a worker, has ended."""
    if "DataLoader worker" in str(error):  # torch raises it wherever the program is when the signal comes
        return LostWorker()
    lost = dist.is_available() and isinstance(error, dist.DistError)
    if lost or "gloo" in str(error) or "onnection closed by peer" in str(error):
        return ConfigError("another process of this run has ended; go on with --resume")
    return None


class Agreement:
    """Small all-reduces; without several processes each is the value itself."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.joint = dist.is_available() and dist.is_initialized()

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, true if it is true on any process."""
        if not self.joint:
            return list(flags)
        tensor = torch.tensor([float(f) for f in flags], device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [bool(v) for v in tensor.tolist()]

    def mean(self, row: Mapping[str, float]) -> dict[str, float]:
        """The mean over processes of every number."""
        if not self.joint:
            return dict(row)
        tensor = torch.tensor(list(row.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(row, (tensor / dist.get_world_size()).tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks."""
        if not self.joint:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], None] | None) -> None:
        """Do `work` on the process that has it; a ConfigError there is raised on all, so that none waits for it."""
        failure = None
        try:
            if work is not None:
                work()
        except ConfigError as error:
            failure = error
        if any(self.any(failure is not None)):
            raise failure or ConfigError("the first process cannot go on")
