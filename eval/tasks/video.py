"""Video object segmentation (DAVIS): the first frame's masks travel through the video along the nearest patches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.datasets.base import VOID, Dataset, Item
from dino_tower.eval.stats import Parts, of_ratio
from dino_tower.eval.task import Metric, Outcome, Split, Task, kept_ids
from dino_tower.eval.tasks.drawing import overlay
from dino_tower.eval.tasks.segmentation import small
from dino_tower.eval.video import first_labels, masks, propagate_video
from dino_tower.eval.video_scores import boundary_accuracy, region_similarity
from dino_tower.eval.view import View

METRICS = {"j&f": Metric("J&F"), "j": Metric("J"), "f": Metric("F")}


def frames_of(data: Dataset) -> Dataset:
    """Every frame of every video as a picture of its own."""
    frames = [frame for video in data for frame in video.frames]
    return replace(data, split=f"{data.split}, frames", items=frames, has=frozenset(), whole=None, places=())


def run(view: View, data: Split, seed: int) -> Outcome:
    """The first frame and 7 more, radius 12 patches, the 5 nearest patches of all of them, exp(cosine / 0.1)."""
    rows, start = view.rows(frames_of(data.test)), 0
    kept = set(kept_ids([video.id for video in data.test]))
    scores, pictures = [], {}
    for video in data.test:
        features = (rows[place] for place in range(start, start + len(video.frames) - 1))
        found, last = object_scores(video, _followed(features, video, rows.grid(start)))
        scores.append(found)
        if video.id in kept:
            pictures[video.id] = overlay(video.frames[-2].image(), last)
        start += len(video.frames)
    return Outcome(judged(scores), [video.id for video in data.test], pictures=pictures)


def judged(scores: Sequence[np.ndarray]) -> dict[str, Parts]:
    """J&F, J and F, the mean over objects, from (J, F) [O, 2] of the objects of each video; a unit is a video, because
    objects of one video are not independent."""
    counts, columns = [len(one) for one in scores], [np.column_stack([one.mean(1), one]) for one in scores]
    return {name: of_ratio([one[:, i].sum() for one in columns], counts) for i, name in enumerate(METRICS)}


def object_scores(video: Item, found: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(J, F) [O, 2] of the objects that the first frame shows, and the last mask that counted.

    found: masks [H, W] of object ids, in every frame between the first and the last.
    One frame at a time, so that memory does not grow with the length of the video. Raises ConfigError for a video of
    fewer than three frames, one without an object, and frames of unlike sizes.
    """
    if len(video.frames) < 3:
        raise ConfigError(f"{video.id}: {len(video.frames)} frames; the first and the last do not count: needs three")
    first = video.frames[0].instances()
    objects = objects_in(first)
    if not len(objects):
        raise ConfigError(f"{video.id}: its first frame shows no object to follow")
    values, mask = [], first
    for frame, mask in zip(video.frames[1:-1], found, strict=True):
        truth = frame.instances()
        if truth.shape != mask.shape:
            raise ConfigError(f"{frame.id}: its mask has another size than the first frame's")
        void = torch.from_numpy(truth == VOID)[None]
        values.append([_of_frame(torch.from_numpy(mask == o)[None], torch.from_numpy(truth == o)[None], void)
                       for o in objects])  # fmt: skip
    return np.array(values).mean(0), mask


def _of_frame(found: Tensor, truth: Tensor, void: Tensor) -> tuple[float, float]:
    return float(region_similarity(found, truth, void)), float(boundary_accuracy(found, truth, void))


def objects_in(mask: np.ndarray) -> np.ndarray:
    """The numbers of the objects of a mask [H, W], ascending."""
    found = np.unique(mask)
    return found[(found != 0) & (found != VOID)]


def _followed(features: Iterable[Tensor], video: Item, grid: tuple[int, int]) -> Iterator[np.ndarray]:
    """The masks of every frame after the first, at its full size."""
    mask = video.frames[0].instances()
    objects = objects_in(mask)
    numbers = np.searchsorted(objects, mask) + 1
    numbers[~np.isin(mask, objects)] = 0
    labels = first_labels(torch.from_numpy(numbers), grid, len(objects))
    names = np.concatenate([[0], objects]).astype(mask.dtype)
    for one in propagate_video(features, labels):
        yield names[masks(one, (mask.shape[0], mask.shape[1])).numpy()]


def still(data: Split) -> Mapping[str, Parts]:
    """The first mask is kept where it is."""
    return judged([object_scores(video, repeat(video.frames[0].instances(), len(video.frames) - 2))[0]
                   for video in data.test])  # fmt: skip


def truth(data: Split, ids: Sequence[str]) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The last frame that counts, and its objects."""
    wanted, found = set(ids), {}
    for video in data.test:
        if video.id in wanted:
            frame = video.frames[-2]
            found[video.id] = (small(frame.image()), overlay(frame.image(), frame.instances()))
    return found


VIDEO = Task(
    "video", "video object segmentation", METRICS, run,
    geometry="native", floor=still, truth=truth, shown=frames_of,
)  # fmt: skip
