"""What a probe and its controls answered, phrase by phrase, and the scores that follow.

Legend: Q phrases, U pictures (the units).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dino_tower.errors import ConfigError, unknown
from dino_tower.eval.grounding.grounded import Grounded
from dino_tower.eval.stats import Parts, of_ratio, of_values

PROBE, BLIND, POSITION = "probe", "text-blind", "position only"
CENTRE, LARGEST, CHANCE = "centre prior", "largest box", "chance"
ROWS = (PROBE, BLIND, POSITION, CENTRE, LARGEST, CHANCE)
UNITS = ("picture", "phrase")


@dataclass(frozen=True)
class Answers:
    """rows: {row of ROWS: {metric: values [Q]}}, NaN where a phrase says nothing about a metric.

    ids: the pictures with phrases, in order [U]; picture: of each phrase its place there [Q]; tags: of each phrase.
    chosen: what was chosen on train, and its score there.
    """

    ids: tuple[str, ...]
    picture: np.ndarray
    tags: tuple[frozenset[str], ...]
    rows: Mapping[str, Mapping[str, np.ndarray]]
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, row: str, metric: str, tag: str = "", unit: str = "picture") -> Parts:
        """The parts of the mean over phrases. tag: only phrases with it; "not TAG": only those without.

        unit: "picture" adds up the phrases of each picture, which are not independent of each other: the score is the
        same, the interval honest. "phrase": one unit a phrase.
        """
        return self._of(self._values(row, metric), tag, unit)

    def gain(
        self, metric: str, over: str = BLIND, row: str = PROBE, tag: str = "", unit: str = "picture"
    ) -> Parts:  # fmt: skip
        """The parts of `row` minus those of `over`, phrase by phrase: what the probe knows beyond the control.

        Its interval is that of the paired difference; `stats.compare` of two towers' gains compares the gains.
        """
        return self._of(self._values(row, metric) - self._values(over, metric), tag, unit)

    def _of(self, values: np.ndarray, tag: str, unit: str) -> Parts:
        if unit not in UNITS:
            raise unknown("unit", unit, UNITS)
        wanted = tag.removeprefix("not ")
        keep = np.array([not tag or ((wanted in own) != (tag != wanted)) for own in self.tags], dtype=bool)
        values = np.where(keep, values, np.nan)
        if unit == "phrase":
            return of_values(values)
        known = ~np.isnan(values)
        sums = np.bincount(self.picture, np.where(known, values, 0.0), minlength=len(self.ids))
        return of_ratio(sums, np.bincount(self.picture, known, minlength=len(self.ids)))

    def _values(self, row: str, metric: str) -> np.ndarray:
        if row not in self.rows:
            raise unknown("row of the probe", row, self.rows)
        if metric not in self.rows[row]:
            raise unknown("metric of the probe", metric, self.rows[row])
        return self.rows[row][metric]


def collected(
    pictures: Sequence[Grounded], rows: Mapping[str, Sequence[Mapping[str, np.ndarray]]], chosen: Mapping[str, Any]
) -> Answers:
    """One table from what was found picture by picture; pictures without phrases are no units."""
    asked = list(_with_phrases(pictures))
    places = [np.full(len(picture.queries), i) for i, picture in enumerate(asked)]
    tags = tuple(query.tags for picture in asked for query in picture.queries)
    joined = {}
    for row, found in rows.items():
        if len(found) != len(asked):
            raise ConfigError(f"{row}: answers for {len(found)} pictures of {len(asked)}")
        joined[row] = {metric: np.concatenate([one[metric] for one in found]) for metric in found[0]}
    return Answers(tuple(picture.id for picture in asked), np.concatenate(places), tags, joined, chosen)


def _with_phrases(pictures: Sequence[Grounded]) -> Iterator[Grounded]:
    return (picture for picture in pictures if picture.queries)
