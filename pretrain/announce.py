"""What a run says before its first step and after its last one."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from dino_tower import __version__
from dino_tower.config import to_tree, to_yaml
from dino_tower.pretrain.crops.views import view_sizes
from dino_tower.pretrain.loading.data import Beside
from dino_tower.pretrain.loading.draws import Place, draw_all
from dino_tower.pretrain.network.student_teacher import BatchStatistics
from dino_tower.pretrain.objectives.objective import views_read
from dino_tower.pretrain.objectives.settings import describe, weights
from dino_tower.pretrain.objectives.term import Inputs, Rates
from dino_tower.pretrain.plan import Plan
from dino_tower.pretrain.settings import Config
from dino_tower.pretrain.state import Trained
from dino_tower.run.directory import RunDirectory
from dino_tower.sources import Source

AVERAGED = {"dino", "ibot", "ijepa"}  # terms that learn from the teacher, whose features are the better ones

TRIAL_PIXELS = 8 * (2 * 224**2 + 8 * 96**2)  # what a trial step sees: eight images of the published recipe


@dataclass(frozen=True)
class Estimate:
    """Of the whole run: seconds of one step without its data, and bytes of one process at its peak."""

    step_seconds: float
    memory: float


def try_step(
    accelerator: Accelerator, student: nn.Module, trained: Trained, config: Config, global_batch: int, beside: Beside
) -> Estimate:
    """Time a forward and backward pass on noise and undo it: gradients dropped, batch statistics put back.

    Small batches scale up to the real one, so the numbers are estimates.
    """
    device, pixels = accelerator.device, sum(s * s for s in view_sizes(config.crops, views_read(config)))
    # batch norm in the head needs two rows
    batch = min(config.batch_size, max(2, TRIAL_PIXELS // pixels))
    inputs = noise(config, beside, batch, global_batch, device)
    rates = Rates(config.loss.teacher_temp)
    statistics = BatchStatistics(trained.student, trained.teacher)
    # both clocks of memory know the highest mark only, and the first pass sets it: what was there is read ahead of it
    before = _memory_now(device)
    for _ in range(2):  # the first pass pays for threads and compilation
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = _time(device)
        with torch.no_grad(), accelerator.autocast():
            targets = trained.objective.targets(trained.teacher, inputs, rates)
        accelerator.backward(student(inputs, targets, rates)["loss"])
        seconds = _time(device) - start
        peak = _memory_peak(device)
        for p in student.parameters():
            p.grad = None
    statistics.put_back()
    trained.objective.forget()
    scale = config.batch_size / batch
    optimiser = 3 * sum(p.numel() * 4 for p in student.parameters() if p.requires_grad)
    return Estimate(seconds * scale * config.compute.accumulate, before + (peak - before) * scale + optimiser)


def noise(config: Config, beside: Beside, count: int, global_batch: int, device: torch.device) -> Inputs:
    """What the loader would bring for the first `count` samples, their pixels noise."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    drawn = [draw_all(beside.draws, Place(config.seed, 0, i, 0, i, global_batch)) for i in range(count)]
    return Inputs(
        [
            torch.randn(count, 3, s, s, generator=generator).to(device)
            for s in view_sizes(config.crops, views_read(config))
        ],
        torch.zeros(count, dtype=torch.int64, device=device),
        ["a picture"] * count,
        {name: torch.from_numpy(np.stack([one[name] for one in drawn])).to(device) for name in drawn[0]},
    )


def _time(device: torch.device) -> float:
    """Seconds, when the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory_now(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return _memory_peak(device)


def _memory_peak(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def facts(config: Config, plan: Plan, world: int) -> dict[str, object]:
    """What a checkpoint and the log's start row state of the run."""
    return {
        "version": __version__,
        "world": world,
        "steps": plan.steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "global_batch": plan.global_batch,
        "images": plan.images,
        "resolved": to_tree(config),
    }


def announcement(
    config: Config, plan: Plan, source: Source, trained: Trained, estimate: Estimate, world: int, device: str
) -> str:
    """The settings and what follows from them, for a person to read before the first step."""
    backbone = trained.student.backbone
    millions = sum(p.numel() for p in backbone.parameters()) / 1e6
    inside = sum(p.numel() for p in backbone.parameters() if p.requires_grad) / 1e6
    tower = f"{config.arch}, {millions:.1f} M parameters"
    if trained.student.adapter is not None:
        tower = f"{config.init_from}, {config.lora.method}: {inside:.2f} of {millions:.1f} M parameters are trained"
    minutes = estimate.step_seconds * plan.steps / 60
    compressed = f" (compressed to {plan.compression:.1%} of the recipe)" if plan.compression < 1 else ""
    lines = [
        to_yaml(config).rstrip(),
        "",
        f"data         {source.describe()}",
        f"objective    {describe(config)}",
        f"tower        {tower}, {type(backbone).__name__}",
        f"batch        {plan.global_batch} = {config.batch_size} x {world} processes x {config.compute.accumulate}",
        f"length       {plan.steps} steps, {plan.epochs:.1f} epochs of {plan.steps_per_epoch} steps{compressed}",
        f"peak lr      {plan.peak_lr:.3g} ({config.optim.lr_scaling})",
        f"expected     about {_duration(minutes)} on {device}, {estimate.memory / 2**30:.1f} GiB a process, "
        f"{estimate.step_seconds:.2g} s a step without its data",
    ]
    return "\n".join([*lines, *(f"note         {text}" for text in plan.warnings)])


def farewell(config: Config, run: RunDirectory, step: int, plan: Plan, signal: str | None) -> str:
    """The last line: what to do with the run, or how to continue it."""
    if signal is not None and step < plan.steps:
        return f"stopped by {signal} after step {step}; a checkpoint is written: continue with --resume"
    better = " --weights teacher" if AVERAGED & weights(config).keys() else ""
    return (
        f"finished: {step} steps in {run.root}\n"
        f"  dino-tower show {run.root}            curves, alarms and pictures as one page\n"
        f"  dino-tower export {run.root} OUT{better}      the tower as a transformers directory"
    )


def _duration(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
