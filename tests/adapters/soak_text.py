"""What a tower brings to text alignment: kinds of scenes whose classes no picture and no text of the training had.

Two towers read the same 2,500 pictures with the same captions for 200 steps. Asked is which of the kinds left out a
scene is, which of all ten, and whether its own caption fits better than one with other colours, with other shapes, or
with the colours exchanged. About ten minutes a core.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dino_tower import load_tower
from dino_tower.adapters.text.command import read_config
from dino_tower.adapters.text.train import align
from dino_tower.eval.stats import compare, interval, of_values
from dino_tower.scenes import LEVELS, Scene, make_scene
from dino_tower.signals import StopSignals
from dino_tower.sources import Sample, Source
from dino_tower.tower import Tower

EASY = LEVELS["easy"]
HELD_OUT = (0, 5, 8)  # kinds
CLASSES = {name for kind in HELD_OUT for name in EASY.kinds[kind]}
PICTURES, ASKED = 2500, 600
TOWERS = ("builtin:scenes", "random:builtin:scenes")
FLAGS = "--data scenes --size 48 --batch-size 64 --steps 200 --optim.lr 0.002 --loss.draw caption --compute.cpu".split()
Pair = tuple[str, str]


def without_classes(scene: Scene) -> bool:
    return not {f"{one.colour} {one.shape}" for one in scene.objects} & CLASSES


@lru_cache(maxsize=1)
def known() -> list[int]:
    """Numbers of training scenes of the other kinds that show nothing of the classes left out."""
    every = (i for i in count() if i % len(EASY.kinds) not in HELD_OUT)
    return list(islice((i for i in every if without_classes(make_scene("easy", i))), PICTURES))


class Known(Source):
    """Those scenes with their captions."""

    name = "scenes without three kinds"

    def __len__(self) -> int:
        return PICTURES

    def __getitem__(self, index: int) -> Sample:
        scene = make_scene("easy", known()[index])
        return Sample(lambda: Image.fromarray(scene.image), str(index), text=scene.caption)


def captions(pair: Pair) -> list[str]:
    """What captions of such a scene say: one to five of one class, the rest of six of the other."""
    first, second = sorted(pair)
    return [f"{_some(n, first)} and {_some(6 - n, second)} among 6 other shapes" for n in range(1, 6)]


def _some(n: int, name: str) -> str:
    return f"{n} {name}" + ("" if n == 1 else "es" if name.endswith("s") else "s")


def vectors(tower: Tower, pairs: list[Pair]) -> Tensor:
    each = F.normalize(tower.text([text for pair in pairs for text in captions(pair)]), dim=1)
    return F.normalize(each.view(len(pairs), 5, -1).mean(1), dim=1)


def answers(tower: Tower) -> dict[str, np.ndarray]:
    """Right or wrong, about each scene."""
    numbers = list(islice((i for i in count() if i % len(EASY.kinds) in HELD_OUT), ASKED))
    images = [Image.fromarray(make_scene("easy", i, "test").image) for i in numbers]
    seen = F.normalize(torch.cat([tower.embed(images[i : i + 50]) for i in range(0, ASKED, 50)]), dim=1)
    kinds = [i % len(EASY.kinds) for i in numbers]
    of_all = seen @ vectors(tower, list(EASY.kinds)).T
    found = {"all": of_all.argmax(1) == torch.tensor(kinds)}
    found["three"] = of_all[:, HELD_OUT].argmax(1) == torch.tensor([HELD_OUT.index(kind) for kind in kinds])
    rng, others = np.random.default_rng(0), {name: list[Pair]() for name in ("colours", "shapes", "exchanged")}
    for kind in kinds:
        (colour, shape), (colour2, shape2) = (name.split() for name in EASY.kinds[kind])
        a, b = rng.choice([one for one in EASY.colours if one not in (colour, colour2)], 2, replace=False)
        others["colours"].append((f"{a} {shape}", f"{b} {shape2}"))
        a, b = rng.choice([one for one in EASY.shapes if one not in (shape, shape2)], 2, replace=False)
        others["shapes"].append((f"{colour} {a}", f"{colour2} {b}"))
        others["exchanged"].append((f"{colour} {shape2}", f"{colour2} {shape}"))
    own = of_all[torch.arange(ASKED), kinds]
    found |= {name: own > (seen * vectors(tower, pairs)).sum(1) for name, pairs in others.items()}
    return {name: one.float().numpy() for name, one in found.items()}


@pytest.mark.parametrize("blocks", [2, 0])
def test_unseen_kinds_are_named_above_the_untrained_twin(blocks: int, tmp_path: Path) -> None:
    found = {}
    for name in TOWERS:
        run = str(tmp_path / name.replace(":", "-"))
        words = [name, *FLAGS, "--head.blocks", str(blocks), "--output", run]
        with StopSignals() as signals:
            assert align(read_config(words), signals, Known()) == 0
        found[name] = answers(load_tower(run))
    trained, twin = (found[name] for name in TOWERS)
    for metric in trained:
        difference = compare(of_values(trained[metric]), of_values(twin[metric]))
        print(blocks, metric, interval(of_values(trained[metric])), interval(of_values(twin[metric])), difference)
    assert interval(of_values(trained["three"])).low > 1 / 3 and interval(of_values(trained["all"])).low > 0.1
    for metric in ("three", "all"):
        assert compare(of_values(trained[metric]), of_values(twin[metric])).low > 0
