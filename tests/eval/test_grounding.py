"""Do the grounding probes give the known answer of towers whose answer is known?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dino_tower.errors import ConfigError
from dino_tower.eval.grounding import Answers, Grounded, Query, embed_phrases, map_probe, position_tokens, region_probe
from dino_tower.eval.grounding.align import fit_alignment, region_hits
from dino_tower.eval.grounding.bilinear import fit_map
from dino_tower.eval.grounding.regions import box_means
from dino_tower.eval.stats import compare, interval, of_values, score

GRID, SIZE, PATCH = (6, 8), (64, 48), 8
NAMES = ["a red ring", "the dog", "blue bars", "small cat", "some grass", "one wheel"]
Set = tuple[list[Grounded], list[Tensor]]
RATES = (2e-3,)


def vectors(seed: int = 7, width: int = 16) -> Tensor:
    """One vector for each name, and one for the ground."""
    return torch.randn(len(NAMES) + 1, width, generator=torch.Generator().manual_seed(seed))


def pictures(
    count: int, seed: int, noise: float = 0.1, mentioned: int = 3, at: int | None = None, mark: float = 0.0
) -> Set:
    """Pictures of three named things of 2 x 2 patches each, whose patches are their class's vector and noise.

    mentioned: how many of the three are asked for; at: which of the six cells the first one lies in, else any; mark:
    what is added to the last feature of those that are asked for.
    """
    rng = np.random.default_rng(seed)
    noisy = torch.Generator().manual_seed(seed)
    grounded, features = [], []
    for number in range(count):
        cells = rng.permutation(6)[:3]
        if at is not None:
            cells = np.array([at, *[cell for cell in rng.permutation(6) if cell != at][:2]])
        kinds = rng.permutation(len(NAMES))[:3]
        patches = vectors()[-1].repeat(*GRID, 1)
        boxes = []
        for i, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
            row, column = cell // 3 * 3, cell % 3 * 3
            patches[row : row + 2, column : column + 2] = vectors()[kind]
            patches[row : row + 2, column : column + 2, -1] += mark * (i < mentioned)
            boxes.append([column * PATCH, row * PATCH, (column + 2) * PATCH, (row + 2) * PATCH])
        features.append(patches + noise * torch.randn(patches.shape, generator=noisy))
        asked = tuple(Query(NAMES[kinds[i]], (i,), (0, 1, 2)) for i in range(mentioned))
        grounded.append(Grounded(f"{seed}-{number}", SIZE, torch.tensor(boxes, dtype=torch.float64), asked))
    return grounded, features


def shuffled(pictures: list[Grounded], seed: int) -> list[Grounded]:
    """The same pictures, their phrases dealt out anew over all of them."""
    texts = [query.text for picture in pictures for query in picture.queries]
    order = iter(np.random.default_rng(seed).permutation(len(texts)))
    return [
        replace(one, queries=tuple(replace(query, text=texts[next(order)]) for query in one.queries))
        for one in pictures
    ]


def value(answers: Answers, row: str, metric: str) -> float:
    return score(answers.parts(row, metric))


def test_a_tower_whose_patches_are_their_names_finds_every_region() -> None:
    train, test = pictures(60, 1), pictures(30, 2)
    answers = region_probe(*train, *test)
    assert value(answers, "probe", "r@1") == 1
    assert value(answers, "chance", "r@1") == pytest.approx(1 / 3)
    assert np.isnan(answers.rows["probe"]["r@5"]).all()  # three regions: five tries say nothing
    assert value(answers, "text-blind", "r@1") == pytest.approx(1 / 3, abs=0.1)
    found = interval(answers.gain("r@1"))
    assert found.low > 0.5 and found.units == 30


def test_a_tower_whose_patches_are_their_names_is_pointed_right() -> None:
    train, test = pictures(60, 1), pictures(30, 2)
    answers = map_probe(*train, *test, steps=100, learning_rates=RATES)
    for metric in ("pointing", "acc@0.5"):
        assert value(answers, "probe", metric) == 1
    assert value(answers, "probe", "energy") > 0.95
    assert value(answers, "text-blind", "pointing") < 0.6  # it sees the three things and not which is meant
    assert value(answers, "chance", "pointing") == pytest.approx(4 / 48)
    assert value(answers, "chance", "energy") == pytest.approx(4 / 48)
    assert interval(answers.gain("pointing")).low > 0.3


def test_a_tower_that_sees_nothing_scores_exactly_chance() -> None:
    (train, _), (test, _) = pictures(30, 1), pictures(25, 2)
    same = [torch.full((*GRID, 5), 0.7)] * 30
    regions = region_probe(train, same, test, same[:25])
    assert np.allclose(regions.rows["probe"]["r@1"], 1 / 3)
    maps = map_probe(train, same, test, same[:25], steps=20, learning_rates=RATES)
    for metric in ("pointing", "energy", "acc@0.5"):
        assert np.allclose(maps.rows["probe"][metric], maps.rows["chance"][metric])
    assert compare(maps.parts("probe", "pointing"), maps.parts("text-blind", "pointing")).difference == 0


def test_with_shuffled_texts_the_probe_knows_what_the_text_blind_one_knows() -> None:
    """Those that are asked for carry a mark: the prior that both may learn, and the texts now say nothing beyond it."""
    train, test = pictures(150, 1, mentioned=1, mark=1.5), pictures(150, 2, mentioned=1, mark=1.5)
    train, test = (shuffled(train[0], 3), train[1]), (shuffled(test[0], 4), test[1])
    regions = region_probe(*train, *test)
    assert value(regions, "text-blind", "r@1") > 0.75 > value(regions, "chance", "r@1") + 0.3
    assert abs(score(regions.gain("r@1"))) < 0.07
    maps = map_probe(*train, *test, steps=120, learning_rates=RATES)
    assert value(maps, "text-blind", "pointing") > 0.75
    assert abs(score(maps.gain("pointing"))) < 0.07


def test_tokens_of_the_place_learn_the_prior_over_places_and_no_more() -> None:
    train, test = pictures(60, 1, mentioned=1, at=4), pictures(30, 2, mentioned=1, at=4)
    assert value(region_probe(*train, *test), "position only", "r@1") > 0.85  # the phrases are noise to it
    maps = map_probe(*train, *test, steps=120, learning_rates=(1e-3, 3e-3))
    assert value(maps, "position only", "pointing") == 1
    assert value(maps, "position only", "energy") > 0.8
    anywhere = map_probe(*pictures(60, 3), *pictures(60, 4), steps=120, learning_rates=(1e-3, 3e-3))
    assert value(anywhere, "position only", "pointing") < 0.4
    assert torch.equal(position_tokens(GRID)[..., 0], torch.ones(GRID))
    assert position_tokens((3, 5)).shape == (3, 5, 64)


def test_what_is_chosen_is_judged_on_pictures_that_were_not_fitted() -> None:
    """Random features and a word for each picture of its own: a fit knows its pictures by heart, and no others."""
    rng = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0, 0, 16, 16], [24, 0, 40, 16], [0, 24, 16, 40]], dtype=torch.float64)
    train = [Grounded(str(i), SIZE, boxes, (Query(f"word{i}", (i % 3,), (0, 1, 2)),)) for i in range(60)]
    features = [torch.randn(*GRID, 400, generator=rng) for _ in train]
    texts = dict(zip([f"word{i}" for i in range(60)], embed_phrases([f"word{i}" for i in range(60)]), strict=True))
    found = fit_alignment(train, features, texts, strengths=(1e-4, 1e-3))
    own = [
        region_hits(found.scores(box_means(f, p.regions, SIZE), texts[p.queries[0].text][None]), p.queries, 1)[0]
        for p, f in zip(train, features, strict=True)
    ]
    assert np.mean(own) == 1
    assert max(found.validation.values()) < 0.6
    where = fit_map(train, features, texts, learning_rates=(1e-3, 3e-3), steps=60)
    mass = [
        float(where.maps(f, texts[p.queries[0].text][None])[0, [0, 0, 1, 1], [0, 1, 0, 1]].sum())
        for p, f in zip(train, features, strict=True)
        if p.queries[0].truth == (0,)
    ]
    assert np.mean(mass) > 0.9
    assert min(where.validation.values()) > np.log(48) - 0.7  # hardly better than a flat map


def test_the_same_seed_gives_the_same_answers_and_grids_may_differ() -> None:
    train, test = pictures(20, 1), pictures(8, 2)
    mixed = [f.repeat_interleave(2, 0).repeat_interleave(2, 1) if i % 2 else f for i, f in enumerate(train[1])]
    once, again = (map_probe(train[0], mixed, *test, steps=60, learning_rates=RATES) for _ in range(2))
    for row, metrics in once.rows.items():
        for metric, values in metrics.items():
            assert np.array_equal(values, again.rows[row][metric])
    assert value(once, "probe", "pointing") > 0.9
    other = map_probe(train[0], mixed, *test, steps=60, learning_rates=RATES, seed=1)
    assert not np.array_equal(once.rows["probe"]["energy"], other.rows["probe"]["energy"])


def test_units_are_pictures_and_tags_choose_phrases() -> None:
    (train, features), (test, of_test) = pictures(20, 1), pictures(25, 2)
    tagged = [replace(p, queries=(replace(p.queries[0], tags=frozenset({"spatial"})), *p.queries[1:])) for p in test]
    answers = region_probe(train, features, tagged, of_test, controls=False)
    assert list(answers.rows) == ["probe"]
    whole, phrases = answers.parts("probe", "r@1"), answers.parts("probe", "r@1", unit="phrase")
    assert len(whole.numerator) == len(answers.ids) == 25
    assert len(phrases.numerator) == 75
    assert score(whole) == score(phrases) == score(of_values(answers.rows["probe"]["r@1"]))
    assert answers.parts("probe", "r@1", tag="spatial").denominator.sum() == 25
    assert answers.parts("probe", "r@1", tag="not spatial").denominator.sum() == 50
    for wrong in ({"row": "prob"}, {"metric": "r@2"}, {"unit": "image"}):
        with pytest.raises(ConfigError, match="choices: "):
            answers.parts(**{"row": "probe", "metric": "r@1", **wrong})


def test_ties_are_drawn_at_random() -> None:
    asked = [Query("x", (0,), (0, 1, 2, 3)), Query("y", (1, 2), (0, 1, 2, 3)), Query("z", (3,), (1, 3))]
    scores = torch.tensor([[1.0, 2, 1, 1], [5, 5, 5, 0], [9, 0, 9, 0]])
    assert region_hits(scores, asked, 1).tolist() == pytest.approx([0, 2 / 3, 1 / 2])
    assert region_hits(scores, asked, 2).tolist()[:2] == pytest.approx([1 / 3, 1])
    assert np.isnan(region_hits(scores, asked, 2)[2])


def test_bad_input_is_one_line() -> None:
    (train, features), (test, of_test) = pictures(4, 1), pictures(3, 2)
    for change, message in (
        (([*train, test[0]], [*features, of_test[0]], test, of_test), "1 pictures are in train and in test.*2-0"),
        ((train, features[:3], test, of_test), "features of 3 pictures for 4 of train"),
        (
            (train, [*features[:3], features[3][..., :9]], test, of_test),
            r"1-3 have the shape \[6, 8, 9\], the first \[6, 8, 16\].*one D",
        ),
        ((train, [f.flatten(0, 1) for f in features], test, of_test), r"needs \[h, w, D\]"),
        ((train, features, [replace(p, queries=()) for p in test], of_test), "none of the 3 pictures of test"),
        ((train, features, test, [*of_test[:2], of_test[2] * torch.nan]), "features of 2-2 are not all finite"),
        ((train[:1], features[:1], test, of_test), "1 training pictures with phrases; needs two"),
    ):
        for probe in (region_probe, map_probe):
            with pytest.raises(ConfigError, match=message):
                probe(*change)
    with pytest.raises(ConfigError, match="no vector"):
        fit_alignment(train, features, {})
