"""Depth and surface normals as the benchmark runs them, on rooms whose walls are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import Dataset, Item
from dino_tower.eval.datasets.depth import NYU_CAMERA
from dino_tower.eval.depth import depth_metrics
from dino_tower.eval.depth_probe import tiles
from dino_tower.eval.extraction import DATA, GRIDS
from dino_tower.eval.stats import score
from dino_tower.eval.surface import normals_of_depth
from dino_tower.eval.task import Outcome, Split
from dino_tower.eval.tasks import TASKS
from dino_tower.eval.tasks.depth import reach
from dino_tower.eval.view import Rows

GRID, SIDE = 6, 48
CAMERA = (120.0, 120.0, 23.5, 23.5)
Depth = Callable[[int], np.ndarray]
Feature = Callable[[Item], torch.Tensor]


def wall(place: int) -> np.ndarray:
    """A plane, turned to the left or right, nearer or farther: [48, 48] metres."""
    rng = np.random.default_rng(place)
    tilt, lean, far = rng.uniform(-0.8, 0.8), rng.uniform(-0.4, 0.4), rng.uniform(1.5, 6)
    v, u = np.mgrid[:SIDE, :SIDE]
    x, y = (u - CAMERA[2]) / CAMERA[0], (v - CAMERA[3]) / CAMERA[1]
    return (far / (1 - tilt * x - lean * y)).astype(np.float32)  # z = far + tilt X + lean Y


def rooms(depth: Depth = wall, test: Depth | None = None, camera: tuple | None = CAMERA) -> Split:
    def part(name: str, places: range, made: Depth) -> Dataset:
        items = [
            Item(f"{name}-{p}", Image.new("RGB", made(p).shape[::-1]), depth_reader=lambda p=p: made(p), camera=camera)
            for p in places
        ]
        return Dataset("rooms", "depth", name, "made", items, frozenset({"depth", "camera"}))

    return Split(part("train", range(20), depth), part("test", range(100, 108), test or depth))


def sees(item: Item) -> torch.Tensor:
    """Log depth, depth and normal of each patch [6, 6, 8], of the room as it is without holes."""
    depth = wall(int(item.id.split("-")[1]))
    small = torch.from_numpy(cv2.resize(depth, (GRID, GRID), interpolation=cv2.INTER_AREA))[..., None]
    normal = torch.from_numpy(normals_of_depth(depth, CAMERA)[:, SIDE // 2, SIDE // 2]).expand(GRID, GRID, 3)
    return torch.cat([small.log(), small, small**2, 1 / small, normal, torch.zeros(GRID, GRID, 1)], -1)


def blind(item: Item) -> torch.Tensor:
    rng = torch.Generator().manual_seed(int(item.id.split("-")[1]))
    return torch.randn(GRID, GRID, 8, generator=rng)


class FakeView:
    """Rows from a function of the item, on disk as the cache keeps them; the mean patch for the whole picture."""

    tower, layer = SimpleNamespace(name="fake"), "last"

    def __init__(self, folder: Path, feature: Feature) -> None:
        self.folder, self.feature = folder, feature

    def rows(self, data: Dataset) -> Rows:
        folder = self.folder / data.split
        folder.mkdir(exist_ok=True)
        found = [self.feature(item) for item in data]
        np.save(folder / DATA, torch.cat([one.flatten(0, 1) for one in found]).numpy())
        np.save(folder / GRIDS, np.array([one.shape[:2] for one in found], np.int32))
        return Rows([folder])

    def vectors(self, data: Dataset) -> torch.Tensor:
        return torch.stack([self.feature(item).mean((0, 1)) for item in data])


def done(task: str, folder: Path, feature: Feature, data: Split, seed: int = 0) -> Outcome:
    view: Any = FakeView(folder, feature)
    assert TASKS[task].fits(view, data) is None
    return TASKS[task].run(view, data, seed)


def scores(found: Outcome) -> dict[str, float]:
    return {name: score(parts) for name, parts in found.parts.items()}


def floor(task: str, data: Split) -> dict[str, float]:
    made = TASKS[task].floor
    assert made is not None
    return {name: score(parts) for name, parts in made(data).items()}


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ridge is looked at, the bins need not be good."""
    monkeypatch.setattr("dino_tower.eval.depth_probe.STEPS", 5)


def test_depth_is_read_by_a_tower_that_holds_it(tmp_path: Path) -> None:
    low, found = floor("depth", rooms()), scores(done("depth", tmp_path, sees, rooms()))
    assert found["linear-rmse"] < 0.1 * low["linear-rmse"]
    assert found["rmse"] < 0.4 * low["rmse"]
    assert found["a1"] > 0.9 > low["a1"]


@pytest.mark.usefixtures("few_steps")
def test_depth_is_not_read_by_a_blind_tower(tmp_path: Path) -> None:
    low, found = floor("depth", rooms()), scores(done("depth", tmp_path, blind, rooms()))
    assert found["rmse"] > 0.7 * low["rmse"]
    assert found["linear-rmse"] > 0.7 * low["linear-rmse"]


def test_the_constant_answer_is_the_mean_of_training() -> None:
    data = rooms(lambda place: np.full((SIDE, SIDE), 2.0 + 2 * (place % 2), np.float32))
    assert floor("depth", data)["rmse"] == pytest.approx(1.0)  # 3 m, where it is 2 or 4


def holes(place: int) -> np.ndarray:
    depth = wall(place)
    depth[:, : SIDE // 2] = 0
    return depth


@pytest.mark.usefixtures("few_steps")
def test_pixels_that_were_not_measured_do_not_count(tmp_path: Path) -> None:
    """Taken for a depth of 0 m they would be the largest errors of all."""
    found = done("depth", tmp_path, sees, rooms(test=holes))
    assert scores(found)["linear-rmse"] < 0.1
    unknown = torch.from_numpy(holes(100))[None]
    ours = depth_metrics(torch.from_numpy(wall(100))[None], unknown)["rmse"]
    as_zero = ((torch.from_numpy(wall(100))[None] - unknown) ** 2).mean().sqrt()
    assert float(ours) == 0
    assert float(as_zero) > 0.5
    nothing = rooms(test=lambda place: wall(place) * (place != 100))  # one picture without any depth says nothing
    parts = done("depth", tmp_path, sees, nothing).parts["rmse"]
    assert parts.denominator.ravel().tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.usefixtures("few_steps")
def test_scores_are_taken_at_the_labels_full_size(tmp_path: Path) -> None:
    """A thin pole that no patch shows is missed. On labels shrunken to the grid it would never have been there."""

    def pole(place: int) -> np.ndarray:
        depth = wall(place)
        depth[:, 21] = 0.3
        return depth

    shrunken = cv2.resize(pole(100), (GRID, GRID), interpolation=cv2.INTER_NEAREST_EXACT)
    assert shrunken.min() > 1
    plain, thin = (scores(done("depth", tmp_path, sees, rooms(test=test)))["linear-rmse"] for test in (wall, pole))
    assert thin > plain + 0.1


@pytest.mark.usefixtures("few_steps")
def test_nothing_is_chosen_on_test(tmp_path: Path) -> None:
    other = rooms(test=lambda place: 9 - wall(place))
    first, second = (done("depth", tmp_path, blind, data) for data in (rooms(), other))
    assert first.chosen == second.chosen
    assert scores(first)["rmse"] != scores(second)["rmse"]


def test_nyu_is_scored_inside_the_eigen_crop(tmp_path: Path) -> None:
    """The border of its pictures, white where the colour camera sees nothing, does not count: and only of its own."""

    def bordered(place: int) -> np.ndarray:
        depth = np.full((480, 640), 9.0, np.float32)
        depth[45:471, 41:601] = cv2.resize(wall(place), (560, 426))
        return depth

    inside = floor("depth", rooms(test=bordered, camera=NYU_CAMERA))["rmse"]
    assert floor("depth", rooms(test=bordered))["rmse"] > inside + 0.5


def test_tiles_keep_patches_with_their_labels() -> None:
    grid = torch.arange(2 * 12 * 24).view(2, 12, 24, 1)
    label = grid.repeat_interleave(4, 1).repeat_interleave(4, 2)
    patches, labels = tiles(grid, 8), tiles(label, 32)
    assert patches.shape == (6, 8, 8, 1)  # one row of three a picture; the four rows below are cut
    assert torch.equal(labels[:, ::4, ::4], patches)
    assert torch.equal(patches[1], grid[0, :8, 8:16])
    assert torch.equal(tiles(grid[:, :5, :6], 8), grid[:, :5, :6])


def test_far_scenes_are_not_cut_off_at_ten_metres() -> None:
    for far, expected in ((9.0, 10.0), (62.5, 63.0), (0.0, 10.0)):
        data = rooms(lambda place, far=far: np.full((SIDE, SIDE), far, np.float32)).train
        assert data is not None and reach(data) == expected


@pytest.mark.usefixtures("few_steps")
def test_every_tower_and_seed_is_judged_on_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest depth that counts came from a tower's own grid and the pictures that its seed drew: in streets, two
    towers were judged up to 79 and up to 81 m."""

    def street(place: int) -> np.ndarray:
        return np.random.default_rng(place).exponential(20, (SIDE, SIDE)).astype(np.float32) + place % 7

    judged: set[float] = set()

    def watched(found: torch.Tensor, true: torch.Tensor, low: float, high: float, crop: bool) -> dict:
        judged.add(high)
        return depth_metrics(found, true, low, high, crop)

    monkeypatch.setattr("dino_tower.eval.tasks.depth.depth_metrics", watched)
    monkeypatch.setattr("dino_tower.eval.tasks.depth.PATCHES", 8 * GRID**2)  # eight pictures of twenty
    data = rooms(street)
    for seed in (0, 1):
        done("depth", tmp_path, blind, data, seed)
        finer = tmp_path / f"finer-{seed}"
        finer.mkdir()
        done("depth", finer, lambda item: blind(item).repeat(2, 2, 1), data, seed)
    floor("depth", data)
    assert len(judged) == 1 and judged.pop() > 10


@pytest.mark.usefixtures("few_steps")
def test_pictures_are_drawn_beside_their_truth(tmp_path: Path) -> None:
    for task in ("depth", "normals"):
        data = rooms()
        found = done(task, tmp_path, sees, data)
        assert TASKS[task].truth is not None
        truths = TASKS[task].truth(data, list(found.pictures))
        assert list(truths) == list(found.pictures) == [item.id for item in data.test]
        assert {truth.size for _, truth in truths.values()} == {one.size for one in found.pictures.values()}
    first = np.asarray(truths["test-100"][1], float) - np.asarray(found.pictures["test-100"], float)
    assert np.median(np.abs(first)) < 30  # the last task's, one scale of colours for both


@pytest.mark.parametrize(("tilt", "lean"), [(0, 0), (0.5, 0), (0, -0.4), (-0.7, 0.3)])
def test_the_normal_of_a_plane_is_exact(tilt: float, lean: float) -> None:
    v, u = np.mgrid[:40, :60]
    x, y = (u - 30) / 500, (v - 20) / 550
    normals = normals_of_depth((3 / (1 - tilt * x - lean * y)).astype(np.float32), (500, 550, 30, 20))
    exact = np.array([tilt, lean, -1]) / np.linalg.norm([tilt, lean, -1])
    np.testing.assert_allclose(normals[:, 5:-5, 5:-5], np.broadcast_to(exact[:, None, None], (3, 30, 50)), atol=1e-4)
    assert not normals[:, :5].any()  # half a window


def test_holes_and_edges_have_no_normal() -> None:
    depth = np.full((40, 60), 2.0, np.float32)
    depth[20, 30] = 0
    depth[:, 45:] = 3
    known = normals_of_depth(depth, (50, 50, 30, 20)).any(0)
    assert known[10:14, 10:14].all()
    assert not known[15:26, 25:36].any()
    assert not known[:, 42:48].any()


def test_normals_are_read_by_a_tower_that_holds_them_and_not_by_one_that_does_not(tmp_path: Path) -> None:
    low, found = floor("normals", rooms()), scores(done("normals", tmp_path, sees, rooms()))
    assert found["rmse"] < 2
    assert found["d1"] == 1
    assert low["rmse"] > 15
    assert scores(done("normals", tmp_path, blind, rooms()))["rmse"] > 0.7 * low["rmse"]
    half = scores(done("normals", tmp_path, sees, rooms(test=holes)))
    assert half["rmse"] < 2  # what was not measured does not count


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_what_cannot_be_trained_on_is_said(task: str, tmp_path: Path) -> None:
    data = rooms()
    assert data.train is not None
    with pytest.raises(ConfigError, match="rooms: 2 training pictures; one is held out, so that it takes 3"):
        done(task, tmp_path, sees, data._replace(train=replace(data.train, items=data.train.items[:2])))
    with pytest.raises(ConfigError, match=r"rooms: .* is known in 0 of 20 training pictures; it takes 3"):
        done(task, tmp_path, sees, rooms(lambda place: np.zeros((SIDE, SIDE), np.float32)))
    with pytest.raises(ConfigError, match="no training part"):
        done(task, tmp_path, sees, data._replace(train=None))


def test_normals_need_a_camera(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train-0: no camera"):
        done("normals", tmp_path, sees, rooms(camera=None))
    with pytest.raises(ConfigError, match="focal lengths 0, 1"):
        normals_of_depth(np.ones((20, 20), np.float32), (0, 1, 2, 3))
