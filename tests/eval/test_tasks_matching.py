"""Tasks that match patches (video, keypoints, warped copies): a perfect tower, a blind one, and what would change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.correspondence import patch_centres
from dino_tower.eval.datasets import allowed_tasks, open_dataset
from dino_tower.eval.datasets.base import VOID, Dataset, Item, Pair
from dino_tower.eval.stats import interval, score
from dino_tower.eval.task import Outcome, Split, Task
from dino_tower.eval.tasks.correspondence import CORRESPONDENCE
from dino_tower.eval.tasks.homography import HOMOGRAPHY, some, warp_of
from dino_tower.eval.tasks.video import VIDEO

GRID = (12, 16)
KINDS = F.normalize(torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), dim=-1)


class Rows(list):
    """Patches of pictures, as a view gives them."""

    def grid(self, place: int) -> tuple[int, int]:
        return self[place].shape[0], self[place].shape[1]


class FakeView:
    """see: a picture's item to its patches [h, w, D]."""

    def __init__(self, see: Callable[[Item], Tensor]) -> None:
        self.see, self.asked = see, 0

    def rows(self, data: Dataset) -> Rows:
        self.asked = len(data)
        return Rows(self.see(item) for item in data)


def run(task: Task, view: Any, items: Sequence[Item], has: str) -> Outcome:
    return task.run(view, Split(None, dataset(items, has)), 0)


def dataset(items: Sequence[Item], has: str) -> Dataset:
    return Dataset("set", "made", "test", "hand", items, frozenset({has}))


def blind() -> Callable[[Item], Tensor]:
    rng = torch.Generator().manual_seed(5)
    return lambda item: torch.randn(*GRID, 64, generator=rng)


def video(name: str, masks: Sequence[np.ndarray]) -> Item:
    """A frame is a picture of its own mask."""
    frames = tuple(
        Item(f"{name}/{t}", Image.fromarray(mask).convert("RGB"), instance_reader=lambda mask=mask: mask)
        for t, mask in enumerate(masks)
    )
    return Item(name, frames[0].payload, frames=frames)


def moving(objects: int = 1, frames: int = 6, step: int = 1) -> list[np.ndarray]:
    """Squares of 3 x 3 that move to the right, one below the other."""
    found = []
    for t in range(frames):
        mask = np.zeros(GRID, np.uint8)
        for one in range(objects):
            mask[4 * one : 4 * one + 3, step * t : step * t + 3] = one + 1
        found.append(mask)
    return found


def seeing(item: Item) -> Tensor:
    """The object of each pixel, and nothing else."""
    return KINDS[torch.from_numpy(item.instances()).long() % 16]


def test_video_follows_what_a_tower_sees() -> None:
    items = [video("a", moving()), video("b", moving(3))]
    view = FakeView(seeing)
    found = run(VIDEO, view, items, "video")
    assert view.asked == 12  # frames
    assert {name: score(parts) for name, parts in found.parts.items()} == {"j&f": 1.0, "j": 1.0, "f": 1.0}
    assert found.ids == ["a", "b"]
    assert list(found.pictures) == ["a", "b"]
    lost = run(VIDEO, FakeView(blind()), items, "video")
    assert score(lost.parts["j"]) < 0.3


def test_the_first_and_the_last_frame_of_a_video_do_not_count() -> None:
    masks = moving()
    masks[-1] = np.zeros(GRID, np.uint8)
    masks[-1][8:, 8:] = 1  # nothing could have followed it there
    assert score(run(VIDEO, FakeView(seeing), [video("a", masks)], "video").parts["j"]) == 1.0
    masks[-2] = masks[-1]
    view = FakeView(lambda item: seeing(video("a", moving()).frames[int(item.id[-1])]))
    assert score(run(VIDEO, view, [video("a", masks)], "video").parts["j"]) == pytest.approx(0.75)


def test_an_object_that_is_gone_and_not_found_is_right() -> None:
    masks = moving()
    masks[3] = masks[4] = np.zeros(GRID, np.uint8)
    assert score(run(VIDEO, FakeView(seeing), [video("a", masks)], "video").parts["j&f"]) == 1.0


def test_every_object_counts_the_same_and_pixels_in_doubt_do_not() -> None:
    """One still object in a video, three that jump away at once in another: a quarter stays, not a half."""
    jump = moving(3, step=4)[:4] + [moving(3, step=4)[3]] * 2
    items = [video("still", moving(step=0)), video("jump", jump)]
    assert VIDEO.floor is not None
    floor = VIDEO.floor(Split(None, dataset(items, "video")))
    assert score(floor["j"]) == pytest.approx(0.25)
    assert interval(floor["j"]).units == 2  # videos: objects of one video are not independent
    masks = [mask * 7 for mask in moving()]  # numbers need not be in a row
    for mask in masks[1:]:
        mask[mask == 7] = VOID
    masks[0][11, 15] = VOID
    assert score(VIDEO.floor(Split(None, dataset([video("a", masks)], "video")))["j"]) == 0.0
    view = FakeView(lambda item: seeing(video("a", moving()).frames[int(item.id[-1])]))
    assert score(run(VIDEO, view, [video("a", masks)], "video").parts["j&f"]) == 1.0


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (moving(frames=2), "a: 2 frames; the first and the last do not count"),
        ([np.zeros(GRID, np.uint8)] * 4, "a: its first frame shows no object"),
        ([moving()[0], np.zeros((4, 4), np.uint8), moving()[0]], "a/1: its mask has another size"),
    ],
)
def test_videos_that_cannot_be_scored_are_named(masks: list[np.ndarray], message: str) -> None:
    def see(item: Item) -> Tensor:
        return KINDS[torch.zeros(GRID, dtype=torch.int64)]

    with pytest.raises(ConfigError, match=message):
        run(VIDEO, FakeView(see), [video("a", masks)], "video")


def pair(name: str, folder: Path, points: int, target: str = "b") -> Item:
    """Points in the middle of patches, mirrored in the second picture, which is twice as large."""
    for file, scale in (("a", 4), ("b", 8), ("c", 8)):
        Image.new("RGB", (GRID[1] * scale, GRID[0] * scale)).save(folder / f"{file}.png")
    columns = np.arange(points) * 3
    first = np.stack([columns * 4 + 1.5, np.full(points, 9.5)], 1)
    second = np.stack([(15 - columns) * 8 + 3.5, np.full(points, 19.5)], 1)
    other = Item(f"{name}/target", folder / f"{target}.png")
    made = Pair(other, first, second, (0, 0, 64, 48), (0, 0, 100, 50))
    return Item(name, folder / "a.png", pair=made)


def mirrored(item: Item) -> Tensor:
    """Every patch has a direction of its own, the second picture shows them the other way round."""
    own = torch.randn(*GRID, 64, generator=torch.Generator().manual_seed(1))
    return own if str(item.payload).endswith("a.png") else own.flip(1)


def test_keypoints_are_found_by_a_perfect_tower(tmp_path: Path) -> None:
    items = [pair("one", tmp_path, 5), pair("two", tmp_path, 3, "c")]
    view = FakeView(mirrored)
    found = run(CORRESPONDENCE, view, items, "pairs")
    assert view.asked == 3  # both pairs share their first picture: it is read once
    assert {name: score(parts) for name, parts in found.parts.items()} == dict.fromkeys(found.parts, 1.0)
    lost = run(CORRESPONDENCE, FakeView(blind()), items, "pairs")
    assert score(lost.parts["pck@0.01"]) == 0


def test_points_and_pictures_are_two_averages(tmp_path: Path) -> None:
    """Five points found in one pair, one lost in another: 5 of 6 points, one of two pictures."""
    items = [pair("one", tmp_path, 5), pair("two", tmp_path, 1, "c")]

    def see(item: Item) -> Tensor:
        return mirrored(item).flip(1) if str(item.payload).endswith("c.png") else mirrored(item)

    found = run(CORRESPONDENCE, FakeView(see), items, "pairs").parts
    assert score(found["pck@0.1"]) == pytest.approx(5 / 6)
    assert score(found["pck-image@0.1"]) == 0.5
    assert CORRESPONDENCE.floor is not None
    # Where nothing moved only the column in the middle of the mirror could be right; none lies there.
    assert score(CORRESPONDENCE.floor(Split(None, dataset(items, "pairs")))["pck@0.1"]) == 0


def test_limits_are_shares_of_the_box_in_the_second_picture(tmp_path: Path) -> None:
    """Found one patch of 8 pixels beside: within a tenth of a box of 100 pixels, not within a twentieth."""
    items = [pair("one", tmp_path, 4)]

    def see(item: Item) -> Tensor:
        return mirrored(item) if str(item.payload).endswith("a.png") else mirrored(item).roll(1, 1)

    found = run(CORRESPONDENCE, FakeView(see), items, "pairs").parts
    assert score(found["pck@0.1"]) == pytest.approx(0.75)  # the first was rolled around the border
    assert score(found["pck@0.05"]) == 0


def gradients(count: int = 4, side: int = 128) -> list[Item]:
    """Pictures whose colour says the place."""
    ramp = np.linspace(0, 255, side).round().astype(np.uint8)
    across = np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.zeros((side, side))], -1)
    return [Item(str(i), Image.fromarray(across.astype(np.uint8))) for i in range(count)]


def colours(item: Item, grid: int = 24) -> Tensor:
    """A tower that sees nothing but colour: the larger the cosine, the nearer the colour."""
    cells = torch.from_numpy(np.array(item.image(), np.float32) / 255).permute(2, 0, 1)
    mean = F.adaptive_avg_pool2d(cells, grid).permute(1, 2, 0)
    waves = mean @ (20 * torch.randn(3, 256, generator=torch.Generator().manual_seed(2)))
    return torch.cat([waves.sin(), waves.cos()], -1)


def test_warped_copies_are_matched_by_what_they_show() -> None:
    items = gradients()
    found = run(HOMOGRAPHY, FakeView(colours), items, "")
    assert score(found.parts["pck@0.05"]) > 0.995
    assert found.ids == ["0", "1", "2", "3"]
    assert all(picture.width > 240 for picture in found.pictures.values())  # two side by side
    lost = run(HOMOGRAPHY, FakeView(blind()), items, "").parts
    assert score(lost["pck@0.05"]) < 0.05


def test_position_alone_finds_what_the_floor_says() -> None:
    items = gradients()
    place = torch.randn(32, 32, 64, generator=torch.Generator().manual_seed(3))
    found = run(HOMOGRAPHY, FakeView(lambda item: place), items, "").parts
    assert HOMOGRAPHY.floor is not None
    floor = HOMOGRAPHY.floor(Split(None, dataset(items, "")))
    for name in found:
        assert score(found[name]) == pytest.approx(score(floor[name]))
    assert 0.02 < score(floor["pck@0.1"]) < 0.5


def test_warps_stay_inside_of_the_picture_and_large_sets_are_thinned() -> None:
    inside = (patch_centres((9, 9), 2).numpy() + 0.5) / 18
    for number in range(50):
        back = np.concatenate([inside, np.ones((81, 1))], 1) @ np.linalg.inv(warp_of(number)).T
        back = back[:, :2] / back[:, 2:]
        assert back.min() >= 0 and back.max() <= 1
    many = dataset([Item(str(i), SimpleNamespace()) for i in range(1000)], "")  # type: ignore[arg-type]
    thin = some(many)
    assert (len(thin), thin[0].id, thin[-1].id, thin.split) == (200, "0", "999", "test, 200 pictures")
    assert some(thin) is thin


def test_drawn_truths_are_there() -> None:
    items = [video("a", moving(3))]
    for task, some_items in ((VIDEO, items), (HOMOGRAPHY, gradients(2))):
        assert task.truth is not None
        drawn = task.truth(Split(None, dataset(some_items, "")), [some_items[0].id])
        assert list(drawn) == [some_items[0].id]
        assert max(drawn[some_items[0].id][0].size) <= 240


def stereo(folder: Path, disparity: np.ndarray, noccluded: np.ndarray | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    height, width = disparity.shape
    for name in ("im0", "im1"):
        Image.new("RGB", (width, height)).save(folder / f"{name}.png")
    data = disparity[::-1].astype("<f4").tobytes()
    (folder / "disp0.pfm").write_bytes(f"Pf\n{width} {height}\n-1.0\n".encode() + data)
    if noccluded is not None:
        Image.fromarray(noccluded).save(folder / "mask0nocc.png")


def test_stereo_pairs_are_pairs(tmp_path: Path) -> None:
    disparity = np.full((48, 64), 8.0)
    disparity[:24] = np.inf  # not measured
    disparity[40:] = 16
    seen = np.full((48, 64), 255, np.uint8)
    seen[:, 50:] = 128
    stereo(tmp_path / "chair", disparity, seen)
    data = open_dataset(str(tmp_path))
    assert (data.kind, allowed_tasks(data)) == ("stereo", ["correspondence", "homography", "health"])
    made = data[0].pair
    assert made is not None
    assert made.points[:, 1].min() >= 24 and made.points[:, 0].max() < 50 and made.target_points.min() >= 0
    moved = (made.points - made.target_points)[:, 0]
    assert set(moved.tolist()) == {8.0, 16.0}
    assert (moved[made.points[:, 1] >= 40] == 16).all()
    with pytest.raises(ConfigError, match="only test"):
        open_dataset(str(tmp_path), "train")


def test_stereo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    stereo(tmp_path / "chair", np.full((8, 8), np.inf))
    with pytest.raises(ConfigError, match=r"disp0\.pfm: no point that both pictures show"):
        open_dataset(str(tmp_path))[0]
    (tmp_path / "chair" / "disp0.pfm").write_bytes(b"PF\n8 8\n-1\n")
    with pytest.raises(ConfigError, match="not a grey PFM file"):
        open_dataset(str(tmp_path))[0]
    (tmp_path / "chair" / "disp0.pfm").unlink()
    with pytest.raises(ConfigError, match="chair: needs im0"):
        open_dataset(str(tmp_path))
