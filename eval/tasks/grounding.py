"""Grounding: does a text find what it names in features of pictures only? Two probes, each beside all its controls.

The headline is the gain over a probe that does not see the text: what one box or one place is like, without knowing
what was asked, is no grounding. Read it beside the untrained twin and the position-only tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from dino_tower.eval.datasets.base import Dataset
from dino_tower.eval.grounding import Answers, Grounded, ground, map_probe, region_probe
from dino_tower.eval.stats import Parts
from dino_tower.eval.task import Metric, Outcome, Split, Task
from dino_tower.eval.view import Rows, View

PICTURES = 2000  # trained on at most
CONTROLS = ("text-blind", "position only", "centre prior", "largest box", "chance")
REGIONS, MAPS = ("r@1", "R@1"), ("pointing", "pointing")
SPATIAL = "spatial"


def questions(data: Dataset, most: int | None = None) -> tuple[list[Grounded], list[int]]:
    """What is asked of each picture, and its place; evenly spread where there are more than `most`."""
    places = np.arange(len(data))
    if most is not None and len(data) > most:
        places = np.unique(np.linspace(0, len(data) - 1, most).round().astype(int))
    return [ground(data[int(i)], names=data.regions) for i in places], places.tolist()


class Picked(Sequence):
    """Features of some of the pictures, read when asked for."""

    def __init__(self, rows: Rows, places: Sequence[int]) -> None:
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]  # an int, as probes ask
        return self.rows[self.places[place]]


def regions(view: View, data: Split, seed: int) -> Outcome:
    """Ridge from box means to phrase embeddings: which of the picture's boxes is meant?"""
    return _outcome(region_probe(*_given(view, data), seed=seed), REGIONS[0], others=("r@5",))


def maps(view: View, data: Split, seed: int) -> Outcome:
    """A bilinear map from patches and phrases to one score a patch: is the best patch on what is meant?"""
    return _outcome(map_probe(*_given(view, data), seed=seed), MAPS[0], others=("energy", "acc@0.5"))


def _given(view: View, data: Split) -> tuple[list[Grounded], Picked, list[Grounded], Picked]:
    train, places = questions(data.trained(), PICTURES)
    test, all_places = questions(data.test)
    return train, Picked(view.rows(data.trained()), places), test, Picked(view.rows(data.test), all_places)


def _outcome(answers: Answers, metric: str, others: Sequence[str]) -> Outcome:
    parts: dict[str, Parts] = {"gain": answers.gain(metric), metric: answers.parts("probe", metric)}
    parts |= {name: answers.parts("probe", name) for name in others}
    parts |= {row: answers.parts(row, metric) for row in CONTROLS}
    if any(SPATIAL in tags for tags in answers.tags):
        parts["spatial gain"] = answers.gain(metric, tag=SPATIAL)
        parts["spatial over place"] = answers.gain(metric, over="position only", tag=SPATIAL)
    return Outcome(parts, answers.ids, answers.chosen)


def fits(view: View, data: Split) -> str | None:
    """Enough pictures that somebody has said something about."""
    said = [sum(bool(item.phrases) for item in part) for part in (data.trained(), data.test)]
    return None if min(said) >= 2 else f"phrases in {said[0]} training and {said[1]} test pictures; needs two of each"


def _metrics(name: str, title: str, others: dict[str, str]) -> dict[str, Metric]:
    found = {"gain": Metric(f"{title}, gain over text-blind"), name: Metric(title)}
    found |= {key: Metric(words) for key, words in others.items()}
    found |= {row: Metric(f"{title}: {row}", better="none") for row in CONTROLS}
    return found | {
        "spatial gain": Metric(f"{title} of spatial phrases, gain over text-blind"),
        "spatial over place": Metric(f"{title} of spatial phrases, gain over position only"),
    }


_task = partial(Task, trains=True, seeds=True, fits=fits)
GROUNDING_REGIONS = _task(
    "grounding-regions", "grounding, which box", _metrics(*REGIONS, {"r@5": "R@5"}), regions
)  # fmt: skip
GROUNDING_MAPS = _task(
    "grounding-maps", "grounding, which patch",
    _metrics(*MAPS, {"energy": "energy in the box", "acc@0.5": "box at IoU 0.5"}), maps, choose=regions,
)  # fmt: skip
