"""What can be known of a run before it is trained: whether it can be, what a step computes, and where it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dino_tower.checkpoint import write_atomically
from dino_tower.images import processor_for
from dino_tower.pretrain.announce import noise
from dino_tower.pretrain.loading.pixels import mean_and_std
from dino_tower.pretrain.network.networks import make_networks, patch_of
from dino_tower.pretrain.network.student_teacher import Student
from dino_tower.pretrain.objectives.objective import beside, check_source, make_objective
from dino_tower.pretrain.objectives.term import Rates
from dino_tower.pretrain.plan import make_plan
from dino_tower.pretrain.settings import Config
from dino_tower.sources import Source, open_sources, probe

PICTURES = 4  # of the step that is counted; some terms compare pictures


class Facts(NamedTuple):
    """gflops of training on one picture, forward and backward (a multiplication and an addition are two operations);
    network: "teacher" where the objective learns from the moving average, so that this is what it makes, else
    "student"."""

    gflops: float
    network: str


def open_data(config: Config) -> Source:
    """The data of a run, its first pictures read. Raises ConfigError."""
    source = open_sources(config.data, config.source, split="train")
    probe(source)
    return source


def facts_of(config: Config, source: Source) -> Facts:
    """One step on noise, on the CPU. Raises ConfigError where this run could not be trained on the data."""
    check_source(config, source)
    make_plan(config, len(source), 1)
    plain = replace(config, compute=replace(config.compute, compile=False))
    network, teacher = make_networks(plain, torch.device("cpu"), 1, source)
    objective = make_objective(config)
    student, rates = Student(network, objective), Rates(config.loss.teacher_temp)
    extras = beside(config, patch_of(network.backbone))
    inputs = noise(config, extras, PICTURES, PICTURES, torch.device("cpu"))
    asked: list[nn.Module] = []
    hooks = [part.register_forward_pre_hook(lambda one, _: asked.append(one)) for part in teacher.backbone.modules()]
    # the fused attention of a CPU is not counted by torch; its plain form is, and does the same products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            targets = objective.targets(teacher, inputs, rates)
        student(inputs, targets, rates)["loss"].backward()
    for hook in hooks:
        hook.remove()
    return Facts(counter.get_total_flops() / PICTURES / 1e9, "teacher" if asked else "student")


def write_untrained(config: Config, source: Source, folder: Path) -> None:
    """The network that the run starts from, as a tower; whole or not at all, and left alone if it is there."""
    if folder.exists():
        return
    mean, std = mean_and_std(config, source)
    backbone = make_networks(config, torch.device("cpu"), 1, source)[0].backbone
    processor = processor_for(config.crops.global_size, patch_of(backbone), mean, std)

    def write(aside: Path) -> None:
        backbone.save_pretrained(aside)
        processor.save_pretrained(aside)

    write_atomically(folder, write)
