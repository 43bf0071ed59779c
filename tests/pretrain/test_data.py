"""The training loader: the same batches whoever reads them, unreadable images replaced, listed and limited."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from numbered import Numbers, number_views, slow_views
from small_pictures import COUNT, png, write_folder

from dino_tower.errors import ConfigError
from dino_tower.pretrain.crops.views import CropsConfig, draw_views, make_views
from dino_tower.pretrain.loading.data import Batch, build_loader, check_shared_memory
from dino_tower.pretrain.loading.order import epoch_order, sample_rng
from dino_tower.sources import Mixture, Source, SourceOptions, open_source

CROPS = CropsConfig(global_size=16, local_size=8, locals=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(write_folder(tmp_path_factory.mktemp("data") / "pictures")))


def batches(source: Source, crops=number_views, **settings) -> list[Batch]:
    return list(build_loader(source, crops, **{"seed": 0, "batch_size": 4, "total_steps": 5, **settings}))


def content(batch: Batch) -> tuple:
    views = tuple(view.numpy().tobytes() for view in batch.views)
    return batch.ids, batch.labels.tolist(), batch.positions.tolist(), batch.epoch, views


def ids(some: list[Batch]) -> list[str]:
    return [name for batch in some for name in batch.ids]


def test_shapes_and_what_they_hold(folder: Source) -> None:
    first, *rest = batches(folder, CROPS, seed=3)
    assert len(rest) == 4
    assert [tuple(view.shape) for view in first.views] == [(4, 16, 16, 3)] * 2 + [(4, 8, 8, 3)] * 2
    assert all(view.dtype == torch.uint8 for view in first.views)
    assert first.labels.tolist() == [-1] * 4 and first.labels.dtype == torch.int64
    order = epoch_order(folder, 3, 0)
    for row, position in enumerate(first.positions.tolist()):
        index, repeat = order.at(position)
        assert repeat == 0 and first.ids[row] == folder.sample_id(index)
        views = make_views(folder[index].image(), draw_views(CROPS, 20, 24, sample_rng(3, 0, index)), CROPS)
        for mine, expected in zip(first.views, views, strict=True):
            np.testing.assert_array_equal(mine[row].numpy(), expected)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Source:
    import datasets

    root = tmp_path_factory.mktemp("stream")
    table = datasets.Dataset.from_dict({"jpg": [png(i) for i in range(COUNT)]})
    for part in range(3):
        table.shard(3, part).to_parquet(root / f"train-{part:05d}-of-00003.parquet", batch_size=4)
    return open_source(f"hf:{root}", SourceOptions(streaming=True, window=8))


@pytest.mark.parametrize("workers, method", [(1, "fork"), (3, "fork"), (2, "spawn")])
def test_workers_change_nothing(folder: Source, stream: Source, workers: int, method: str) -> None:
    source = Mixture([folder, stream], (1.0, 2.0))
    alone = batches(source, CROPS, total_steps=25)
    helped = batches(source, CROPS, total_steps=25, workers=workers, start_method=method)
    assert [content(batch) for batch in helped] == [content(batch) for batch in alone]
    assert alone[-1].epoch == 1


@pytest.mark.parametrize("kind", ["folder", "stream"])
def test_resuming_gives_the_batches_that_were_left(kind: str, request: pytest.FixtureRequest, folder: Source) -> None:
    source = request.getfixturevalue(kind)
    settings = {"accumulate": 2, "rank": 1, "world": 2, "batch_size": 3, "total_steps": 9}
    whole = [content(batch) for batch in batches(source, CROPS, **settings)]
    assert len(whole) == 18
    for step in (1, 3, 4, 8):
        rest = batches(source, CROPS, **settings, start_step=step, workers=step % 2, start_method="fork")
        assert [content(batch) for batch in rest] == whole[2 * step :]


def random_states() -> tuple:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


def test_global_random_states_are_left_alone(folder: Source) -> None:
    def seeded(read: Callable[[], object]) -> tuple:
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        read()
        return random_states()

    expected = seeded(lambda: None)
    for workers in (0, 2):
        assert seeded(lambda w=workers: batches(folder, CROPS, workers=w, start_method="fork")) == expected
    before = [content(batch) for batch in batches(folder, CROPS)]
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    assert [content(batch) for batch in batches(folder, CROPS)] == before


def test_a_bug_in_the_views_is_not_taken_for_a_bad_image(folder: Source) -> None:
    with pytest.raises(ZeroDivisionError):
        batches(folder, lambda sample, rng: [1 // 0])


def test_workers_ignore_the_signals_that_the_main_process_handles() -> None:
    loader = build_loader(
        Numbers(400), slow_views, seed=0, batch_size=4, total_steps=30, workers=2, start_method="fork"
    )
    before = {child.pid for child in psutil.Process().children()}
    first = list(islice(loader, 2))  # one of each worker: both have begun
    workers = [child for child in psutil.Process().children() if child.pid not in before]
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            worker.send_signal(number)
    rest = list(islice(loader, 20))
    assert [batch.ids for batch in first + rest] == [b.ids for b in batches(Numbers(400), total_steps=22)]
    loader.close()
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]


ORPHANS = """
import os, signal, sys
sys.path.insert(0, {here!r})
import psutil
from numbered import Numbers, slow_views
from dino_tower.pretrain.loading.data import build_loader
loader = build_loader(Numbers(4000), slow_views, seed=0, batch_size=4, total_steps=900, workers=2, start_method="fork")
next(loader)
print(*[child.pid for child in psutil.Process().children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_the_main_process_is_killed() -> None:
    """Workers ignore SIGTERM: nobody else would end them."""
    code = ORPHANS.format(here=str(Path(__file__).parents[1] / "stand_ins"))
    ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=120)
    pids = [int(word) for word in ran.stdout.split()]
    assert ran.returncode == -signal.SIGKILL and len(pids) == 2
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.2)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    def total() -> int:
        process = psutil.Process()
        return sum(one.memory_info().rss for one in [process, *process.children()])

    yield total


def test_memory_does_not_grow_with_the_images_read(memory: Callable[[], int]) -> None:
    loader = build_loader(
        Numbers(5000), number_views, seed=0, batch_size=8, total_steps=1400, workers=1, start_method="fork"
    )
    for _ in islice(loader, 300):
        pass
    before = memory()
    for _ in islice(loader, 1000):
        pass
    assert memory() < 1.02 * before
    loader.close()


def test_too_little_shared_memory_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    small = os.statvfs_result([real.f_bsize, 4096, 16384, 16384, 16384, *list(real)[5:]])
    monkeypatch.setattr(os, "statvfs", lambda place: small)  # the 64 MB that docker gives
    check_shared_memory(CropsConfig(), 64, 0, str(tmp_path))
    with pytest.raises(ConfigError, match=r"--workers 8 need \d+ MB of shared memory and .* has 64 MB free"):
        check_shared_memory(CropsConfig(), 64, 8, str(tmp_path))
    check_shared_memory(CropsConfig(), 64, 8, str(tmp_path / "no such place"))


def test_a_view_is_the_same_however_many_are_cut() -> None:
    """MAE and others learn from the first view: the second was cut, sent and normalised in vain."""
    from dino_tower.pretrain.loading.data import CropViews
    from dino_tower.pretrain.objectives.objective import views_read
    from dino_tower.pretrain.settings import Config
    from dino_tower.sources import SourceOptions, open_sources

    sample, crops = open_sources(("scenes",), SourceOptions(), split="train")[0], CropsConfig()
    cut = [CropViews(crops, count)(sample, np.random.default_rng(3)) for count in (None, 1)]
    assert len(cut[0]) == 2 + crops.locals and len(cut[1]) == 1 and np.array_equal(cut[0][0], cut[1][0])
    reads = {
        name: views_read(Config(objective=name)) for name in ("mae", "ijepa", "clip", "supervised", "dino", "simclr")
    }
    assert reads == {"mae": 1, "ijepa": 1, "clip": 1, "supervised": 1, "dino": None, "simclr": None}
