"""Retrieval, copy detection, towers with text, dense attention: perfect and blind embeddings, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.dense_attention import FORMS, class_scores, gem, heads_of, joined_heads, maskclip, vanilla
from dino_tower.eval.descriptors import copy_descriptor, fit_whitening, multi_scale
from dino_tower.eval.descriptors import gem as gem_pool
from dino_tower.eval.retrieval import average_precision, copy_detection, rank, retrieval_scores
from dino_tower.eval.zero_shot import average_precision_per_class, class_weights, named, retrieval_hits


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_average_precision_by_hand() -> None:
    assert average_precision([0, 1, 2], 3) == 1.0
    assert average_precision([], 3) == 0.0
    assert average_precision([1], 1) == pytest.approx(0.25)  # (0/1 + 1/2) / 2
    assert average_precision([0], 2) == pytest.approx(0.5)


def test_perfect_and_blind_retrieval() -> None:
    places = noise(20, 64)
    database = places.repeat_interleave(10, 0) + 0.1 * noise(200, 64, seed=1)
    truth = {"easy": [range(10 * q, 10 * q + 4) for q in range(20)],
             "hard": [range(10 * q + 4, 10 * q + 8) for q in range(20)],
             "junk": [range(10 * q + 8, 10 * q + 10) for q in range(20)]}  # fmt: skip
    seeing, blind = rank(places, database), rank(noise(20, 64, seed=2), database)
    for setup, positives in (("easy", 4), ("medium", 8), ("hard", 4)):
        found = retrieval_scores(seeing, truth, setup)
        assert found.average_precision.tolist() == [1.0] * 20
        assert found.precision_at[:, 0].tolist() == [1.0] * 20
        # Averaged over random lists of n images with p positives, trapezoids give about p / n.
        chance = retrieval_scores(blind, truth, setup).average_precision
        assert float(chance.mean()) < 2.5 * positives / 200


def test_easy_images_are_junk_in_the_hard_setup() -> None:
    ranks = torch.tensor([[0, 1, 2, 3]])
    truth = {"easy": [[0]], "hard": [[2]], "junk": [[1]]}
    assert retrieval_scores(ranks, truth, "hard").average_precision.tolist() == [1.0]
    counted_as_wrong = {"easy": [[]], "hard": [[2]], "junk": [[]]}
    assert retrieval_scores(ranks, counted_as_wrong, "hard").average_precision[0] < 0.3


def test_queries_without_positives_are_left_out() -> None:
    found = retrieval_scores(torch.tensor([[0, 1], [0, 1]]), {"easy": [[], [0]], "hard": [[], []], "junk": [[], []]})
    assert math.isnan(found.average_precision[0])
    assert found.average_precision[1] == 1.0
    with pytest.raises(ConfigError, match="1 ranked lists"):
        retrieval_scores(torch.tensor([[0, 1]]), {"easy": [[], [0]]})
    with pytest.raises(ConfigError, match="choices: easy, hard, medium"):
        retrieval_scores(torch.tensor([[0, 1]]), {"easy": [[0]]}, "mediun")


def test_copies_are_found_by_a_descriptor_that_sees_them() -> None:
    originals = noise(40, 32)
    copies = 3 * originals[:25] + 0.1 * noise(25, 32, seed=1)
    assert copy_detection(copies, originals, [[i] for i in range(25)]).tolist() == [1.0] * 25
    blind = copy_detection(noise(25, 32, seed=2), originals, [[i] for i in range(25)], retrieved=40)
    assert float(blind.mean()) < 0.25
    assert math.isnan(copy_detection(copies[:1], originals, [[]])[0])
    late = copy_detection(originals[:1], originals.flip(0), [[0]], retrieved=20)
    assert late.tolist() == [0.0]  # an original beyond the list adds nothing
    with pytest.raises(ConfigError, match="originals for 1"):
        copy_detection(copies, originals, [[0]])


def test_whitening_makes_all_directions_equal() -> None:
    rows = noise(500, 6) @ noise(6, 6, seed=1) + 4
    whitening = fit_whitening(rows)
    white = (rows.double() - whitening.mean) @ whitening.matrix.T
    torch.testing.assert_close(white.T @ white / 500, torch.eye(6).double(), atol=1e-3, rtol=0)
    assert fit_whitening(rows, components=2)(rows).shape == (500, 2)
    assert torch.allclose(whitening(rows).norm(dim=1), torch.ones(500))
    with pytest.raises(ConfigError, match="two images or more"):
        fit_whitening(rows[:1])


def test_descriptors_of_equal_patches() -> None:
    assert gem_pool(torch.full((2, 3, 3, 5), 0.5)).flatten().tolist() == pytest.approx([0.5] * 10)
    assert gem_pool(torch.full((1, 2, 2, 1), -3.0)).item() == pytest.approx(1e-6, rel=1e-3)
    assert copy_descriptor(torch.ones(2, 4), torch.ones(2, 3, 3, 5)).shape == (2, 9)
    sizes = []
    multi_scale(lambda x: sizes.append(tuple(x.shape[-2:])) or x.mean((2, 3)), noise(1, 3, 64, 96), multiple=16)
    assert sizes == [(64, 96), (48, 64), (32, 48)]


def test_zero_shot_and_text_retrieval() -> None:
    names = F.normalize(noise(6, 32), dim=1)
    prompts = names[:, None] + 0.05 * noise(6, 4, 32, seed=1)
    labels = torch.arange(60) % 6
    seeing, blind = names[labels] + 0.05 * noise(60, 32, seed=2), noise(60, 32, seed=3)
    weights = class_weights(prompts)
    assert named(seeing @ weights.T, labels).all()
    assert named(blind @ weights.T, labels).mean() < 0.4
    assert named(blind @ weights.T, labels, top=6).all()
    pairs = F.one_hot(labels, 6).bool()
    assert retrieval_hits(seeing, names, pairs, 1).all()
    assert retrieval_hits(blind, names, pairs, 100).all()
    assert average_precision_per_class(seeing @ names.T, pairs.float()).tolist() == [1.0] * 6
    with pytest.raises(ConfigError, match="60 queries, 6 others"):
        retrieval_hits(seeing, names, pairs.T, 1)


def test_open_vocabulary_segmentation_needs_local_attention() -> None:
    """Values say what a patch shows; queries and keys of the trained attention send every patch to one and the same."""
    truth = torch.arange(36) % 3
    texts = F.normalize(noise(3, 16), dim=1)
    v = 20 * texts[truth][None, None]
    q = k = 6 * F.one_hot(truth, 16).float()[None, None]
    sink = torch.zeros(1, 1, 36, 16)
    sink[..., 0, :] = 50.0
    trained = vanilla(torch.ones(1, 1, 36, 16), sink, v)
    assert float((class_scores(trained[0], texts)[0].argmax(1) == truth).double().mean()) == pytest.approx(1 / 3)
    for form in ("maskclip", "sclip", "gem"):
        patches = FORMS[form](q, k, v)
        assert torch.equal(class_scores(patches[0], texts)[0].argmax(1), truth), form
    assert maskclip(q, k, v) is v
    # A sharp temperature leaves each group of equal patches its own value, an infinite one averages them all.
    torch.testing.assert_close(gem(q, k, v, temperature=1e-3), v, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(gem(q, k, v, temperature=1e6), v.mean(2, keepdim=True).expand_as(v), atol=1e-2, rtol=0)


def test_heads_are_taken_apart_and_joined() -> None:
    tokens, eye = noise(2, 5, 12), torch.eye(12)
    q, _, v = heads_of(tokens, torch.cat([eye, 2 * eye, 3 * eye]), None, heads=4)
    assert v.shape == (2, 4, 5, 3)
    torch.testing.assert_close(joined_heads(q, eye, None), tokens)
    torch.testing.assert_close(joined_heads(v, eye, torch.ones(12)), 3 * tokens + 1)
    assert class_scores(noise(2, 3, 3, 8), noise(4, 5, 8)).shape == (2, 3, 3, 4)
    with pytest.raises(ConfigError, match="5 heads"):
        heads_of(tokens, torch.ones(36, 12), None, heads=5)
    assert not np.isnan(average_precision_per_class(noise(5, 2), torch.ones(5, 2))).any()
