"""Linear segmentation by the published schedule: hours on a GPU, in no suite; name it to run it."""

from __future__ import annotations

from dino_tower.errors import ConfigError
from dino_tower.eval.segmentation_schedule import STEPS, predict_by_windows, train_on_crops
from dino_tower.eval.task import Outcome, Split, Task
from dino_tower.eval.tasks import segmentation
from dino_tower.eval.view import View
from dino_tower.tower import Tower


def run(view: View, data: Split, seed: int) -> Outcome:
    """Nothing is kept but the head: every step sees new crops."""
    tower = _tower(view)
    head = train_on_crops(tower, data.trained(), segmentation.regions_of(data), STEPS, seed=seed)
    return segmentation.judge_pictures(
        data, lambda i, size: predict_by_windows(tower, head, data.test[i].image(), size).cpu().numpy()
    )


def fits(view: View, data: Split) -> str | None:
    """A tower whose windows may have any size."""
    if not isinstance(view.tower, Tower):
        return "raw pixels have no features to train on crop by crop; the fast form has this floor"
    return "takes one size only, the schedule shows crops of 512 pixels" if view.tower.native else None


def _tower(view: View) -> Tower:
    if not isinstance(view.tower, Tower):
        raise ConfigError("linear segmentation: no tower")
    return view.tower


LINEAR_SEGMENTATION_FULL = Task(
    "linear-segmentation-full", "linear segmentation, published schedule", segmentation.METRICS, run,
    features=(), geometry="own", seeds=True, fits=fits, floor=segmentation.majority, truth=segmentation.truth,
)  # fmt: skip
