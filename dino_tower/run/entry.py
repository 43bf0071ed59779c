"""How a training begins and ends: what it says, the processes that find each other, and faults that are no bugs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import transformers
from accelerate import Accelerator

from dino_tower.agreement import join_after_restart, lost_process
from dino_tower.errors import ConfigError
from dino_tower.run.directory import CANNOT_WRITE, cannot_write
from dino_tower.signals import STOPPED, Stopped, StopSignals
from dino_tower.trackers import tracker_names


class Compute(Protocol):
    """What every training's settings say of how it is computed."""

    @property
    def precision(self) -> str: ...

    @property
    def cpu(self) -> bool: ...


def say(line: str) -> None:
    """Print a line from the first process, before accelerate knows which one that is."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def guarded(work: Callable[[StopSignals], int], output: str) -> int:
    """The exit code of `work`, which trains and writes into `output`.

    A stop signal before its first step ends it with STOPPED. Raises ConfigError, one line for the user, where another
    process of the run is gone and where the disk is full or may not be written.
    """
    with StopSignals() as signals:
        try:
            return work(signals)
        except Stopped:
            say(f"stopped by {signals.received} before a step was done; go on with --resume auto")
            return STOPPED
        except RuntimeError as error:
            if (fate := lost_process(error)) is None:
                raise
            raise fate from error
        except OSError as error:
            place = Path(error.filename or output)
            if error.errno not in CANNOT_WRITE or not place.is_relative_to(output):
                raise
            raise cannot_write(place, error) from error


def quiet_libraries() -> None:
    """transformers and accelerate report to themselves; a run says what a person needs."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def start_accelerator(compute: Compute, tracker: str, output: str) -> Accelerator:
    """The accelerator of a run, in a process that torchrun may have started again.

    Raises ConfigError for fp16 without a GPU and for a tracker that is not there.
    """
    # Not left to accelerate: on a machine without a GPU each process of torchrun would take itself for the only one.
    cpu = compute.cpu or not torch.accelerator.is_available()
    if compute.precision == "fp16" and cpu:
        raise ConfigError("compute.precision fp16 needs a GPU; on a CPU take bf16 or no")
    join_after_restart(cpu)
    trackers = tracker_names(tracker)
    return Accelerator(mixed_precision=compute.precision, cpu=cpu, log_with=trackers or None, project_dir=output)
