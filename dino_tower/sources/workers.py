"""Work on keys in other processes, results in order: the one loop through which every command reads images."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.images import UnreadableImage
from dino_tower.sources.base import NO_LABEL, Source

START_METHODS = ("fork", "spawn", "forkserver")


class LostWorker(ConfigError):
    """A worker process was killed from outside."""

    one_process = True

    def __init__(self) -> None:
        super().__init__("a loader process was killed, perhaps for want of memory; go on with fewer --workers")


class _Task:
    """A function in the shape of torch's map-style dataset, whose indices are arbitrary keys."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, key: Any) -> Any:
        return self.function(key)


def load_batches(
    task: Callable[[Any], Any],
    keys: Iterable[Any],
    *,
    workers: int = 0,
    start_method: str | None = None,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Generator[Any]:
    """Yield task(key) for every key, in order. With workers > 0 the tasks run in that many processes, ahead of time.

    The results depend on the keys alone: no global random state is read or changed. Workers ignore SIGINT, SIGTERM and
    SIGUSR1 (the main process decides when to stop) and use one thread each. Close the iterator to end them.

    Raises:
        ConfigError: negative workers or an unknown start method; LostWorker.
    """
    import torch  # here and not above: a mistake in --data is reported before torch would have loaded
    from torch.utils.data import DataLoader

    if workers < 0:
        raise ConfigError(f"--workers {workers}: give 0 (read in the main process) or more")
    if start_method is not None and start_method not in START_METHODS:
        raise ConfigError(f"start method {start_method!r}; choices: {', '.join(START_METHODS)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user's choice
        loader: DataLoader = DataLoader(
            _Task(task),  # type: ignore[arg-type]
            batch_size=None,
            sampler=keys,  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            multiprocessing_context=start_method if workers else None,
            worker_init_fn=start_worker,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else the loader draws its workers' seeds from the global generator
        )
        if workers and "cv2" in sys.modules:
            # OpenCV's pool of threads does not survive a fork: a worker that touches it waits for ever for threads that
            # stayed behind. Set to 1 here, where its threads are, it ends them at once and leaves nothing to inherit.
            sys.modules["cv2"].setNumThreads(1)
        results = iter(loader)
    processes = list(getattr(results, "_workers", ()))
    try:
        yield from results
    except (EOFError, ConnectionError) as error:  # a pipe that breaks: the kernel tells of the death a moment later
        if wait([process.sentinel for process in processes], timeout=5):
            raise LostWorker from error
        raise
    finally:
        del results  # asks the workers to end and waits for some seconds
        for process in processes:
            if process.is_alive():
                process.kill()  # they ignore SIGTERM; one that hangs in a dead file system would block our exit


def start_worker(worker: int) -> None:
    """What every worker process does first."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    # One line per odd file and worker would bury the progress bar; what matters is in skipped.jsonl.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _as_it_is(result: Any) -> Any:
    return result


@dataclass
class ReadBatch:
    """Samples read in order. `items` are what the transform gave; unreadable samples stand in `skipped` only."""

    items: list[Any]
    ids: list[str]
    labels: np.ndarray  # int64 [B], NO_LABEL where there is none
    indices: np.ndarray  # int64 [B], in the source
    captions: list[str | None]
    skipped: list[tuple[str, str]]  # (id, reason)


@dataclass(frozen=True)
class _Reading:
    source: Source
    transform: Callable[[Image.Image], Any]

    def __call__(self, indices: np.ndarray) -> ReadBatch:
        items, read, skipped, kept = [], [], [], []
        for index in indices.tolist():
            try:
                sample = self.source[index]
                items.append(self.transform(sample.image()))
            except UnreadableImage as error:
                skipped.append((self.source.sample_id(index), error.reason))
            else:
                read.append(sample)
                kept.append(index)
        labels = [NO_LABEL if sample.label is None else sample.label for sample in read]
        return ReadBatch(
            items,
            [sample.id for sample in read],
            np.array(labels, np.int64),
            np.array(kept, np.int64),
            [sample.caption for sample in read],
            skipped,
        )


def read_batches(
    source: Source,
    transform: Callable[[Image.Image], Any],
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    start_method: str | None = None,
) -> Generator[ReadBatch]:
    """Every sample once, in order, none dropped: rank r of `world` gets the samples r, r + world, ...

    `transform` takes the picture (PIL RGB); for workers by spawn it must be picklable. The last batch may be smaller,
    and a batch has fewer items where pictures cannot be read.
    """
    keys = rank_batches(len(source), batch_size, rank, world)
    return load_batches(_Reading(source, transform), keys, workers=workers, start_method=start_method)


def rank_batches(count: int, batch_size: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """The evaluation order: indices int64 [batch_size or fewer] of one rank; over all ranks each of `count` once."""
    mine = np.arange(rank, count, world)
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


def read_ahead(items: Iterable[Any], depth: int) -> Generator[Any]:
    """The same items, produced by a thread that stays up to `depth` ahead. Its exceptions come out here."""
    queue: Queue = Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[str, Any]) -> bool:
        while not stop.is_set():
            try:
                queue.put(entry, timeout=0.2)
                return True
            except Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(("item", item)):
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))

    thread = threading.Thread(target=produce, daemon=True, name="read-ahead")
    thread.start()
    try:
        while True:
            try:
                kind, value = queue.get(timeout=1.0)
            except Empty:
                continue
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stop.set()
        thread.join(timeout=5)
