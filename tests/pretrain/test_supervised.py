"""The supervised term: smoothed cross-entropy of those that have a label, and what it cannot learn from."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dino_tower import export_tower, load_tower
from dino_tower.errors import ConfigError
from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.objectives.control_settings import SupervisedConfig
from dino_tower.pretrain.objectives.objective import make_objective
from dino_tower.pretrain.objectives.supervised import Supervised, information, labelled_mean
from dino_tower.pretrain.objectives.term import Inputs, Rates
from dino_tower.pretrain.settings import Config, CropsConfig, ModelConfig
from dino_tower.sources import open_source
from dino_tower.tokens import tokens

FLAGS = ("--objective", "supervised")
LABELS = torch.tensor([0, 3, -1, 3])


def by_hand(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """-sum q ln p with q the label's 1 - s and s / C for every class, over those with a label."""
    each = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        if label < 0:
            continue
        total = sum(math.exp(x) for x in row)
        wanted = [smoothing / len(row) + (1 - smoothing) * (k == label) for k in range(len(row))]
        each.append(-sum(q * math.log(math.exp(x) / total) for q, x in zip(wanted, row, strict=True)))
    return sum(each) / len(each)


def test_the_loss_by_hand() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for smoothing in (0.0, 0.1):
        loss, share = labelled_mean(logits, LABELS, smoothing)
        assert loss.item() == pytest.approx(by_hand(logits, LABELS, smoothing), rel=1e-5) and share == 0.75


@pytest.mark.parametrize("views", [1, 2])
def test_the_class_token_of_each_view_tells_the_label(views: int) -> None:
    config = Config(
        arch="vitt8", objective="supervised", crops=CropsConfig(global_size=16, locals=0),
        model=ModelConfig(width=16, depth=1, heads=2, drop_path=0.0), supervised=SupervisedConfig(views=views),
    )  # fmt: skip
    source = open_source("scenes")
    student, teacher = make_networks(config, torch.device("cpu"), world=1, source=source)
    head = student.part("classifier")
    assert head.out_features == len(source.classes) and "classifier" not in teacher.parts()
    g = torch.Generator().manual_seed(0)
    given = Inputs([torch.randn(4, 3, 16, 16, generator=g) for _ in range(2)], LABELS)
    logits = torch.cat([head(tokens(student.backbone, view).cls) for view in given.views[:views]])
    term = Supervised(config)
    loss = term.loss(student, None, given, None, Rates(0.04))
    assert loss.item() == pytest.approx(by_hand(logits, LABELS.repeat(views), 0.1), rel=1e-5)
    row = term.health(None, loss)
    right = [int(one.argmax()) == label for one, label in zip(logits, LABELS.repeat(views), strict=True) if label >= 0]
    assert row["supervised_accuracy"] == pytest.approx(sum(right) / len(right)) and row["supervised_labelled"] == 0.75
    nothing = term.loss(student, None, Inputs(given.views, torch.full((4,), -1)), None, Rates(0.04))
    nothing.backward()  # DDP waits for every gradient
    assert nothing == 0 and all(p.grad is not None for p in student.parameters() if p.requires_grad)


def test_one_answer_for_all_rings_an_alarm() -> None:
    same = torch.randn(1, 5).expand(6, 5)
    assert information(same) == pytest.approx(0, abs=1e-6)
    assert information(1e3 * torch.eye(4)) == pytest.approx(math.log(4), rel=1e-5)
    (rule,) = make_objective(Config(objective="supervised")).rules().values()
    assert rule.sign({"supervised_information": 0.0}) and not rule.sign({"supervised_information": 1.0})


def test_data_without_labels_is_refused_before_anything_is_written(pretrain, write_photos, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    with pytest.raises(ConfigError, match=r"learns from labels and there are none; put the pictures into one folder"):
        pretrain("run", *FLAGS, "--data", str(photos), "--steps", "1")
    with (tmp_path / "one.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *([path, "wren"] for path in sorted(photos.iterdir()))])
    with pytest.raises(ConfigError, match="needs two classes to tell apart; all pictures are of one, 'wren'"):
        pretrain("run", *FLAGS, "--data", str(tmp_path / "one.csv"), "--steps", "1")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["supervised", "simclr"])
def test_the_tower_is_exported_and_what_stood_beside_it_stays(pretrain, tmp_path: Path, name: str) -> None:
    """And is looked at on the way: k-NN beside that of the untrained network."""
    more = ("--simclr.hidden", "16", "--simclr.outputs", "8", "--monitor.minutes", "9", "--monitor.knn-images", "40")
    run = pretrain("run", "--objective", name, *more, "--steps", "2")
    heads = load_file(run / "checkpoints/step-2/heads.safetensors")
    assert {key.split(".")[0] for key in heads} == {"student"}
    export_tower(run, tmp_path / "out")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_tower(tmp_path / "out")(x).patches, load_tower(run)(x).patches)
    assert not load_tower(run).has_text
    card = (tmp_path / "out/README.md").read_text()
    assert ("pretrained on pictures with labels" in card) == ("which were trained on" in card) == (name == "supervised")
    assert ("pretrained without labels with" in card) == ("no labels used" in card) == (name == "simclr")


def test_labels_count_the_same_on_whichever_process(pretrain, lives, tiny, write_photos, tmp_path: Path) -> None:
    """A mean of the processes' means would give more to a label that has no other beside it."""
    photos = sorted(write_photos(tmp_path / "photos", 16).iterdir())
    with (tmp_path / "some.csv").open("w", newline="") as file:
        rows = [[path, ("wren", "heron")[i % 2] if i % 5 < 2 else ""] for i, path in enumerate(photos)]
        csv.writer(file).writerows([["path", "label"], *rows])
    flags = [*FLAGS, "--data", str(tmp_path / "some.csv"), "--steps", "4", "--optim.base-lr", "1e-4"]
    one = pretrain("one", *flags)
    words = ["pretrain", *tiny(*flags, "--batch-size", "4"), "--output", str(tmp_path / "two")]
    ranks = lives.start_ranks(words, 2)
    assert [lives.wait(rank) for rank in ranks] == [0, 0], lives.said(ranks[0])
    logs = [map(json.loads, (run / "log.jsonl").read_text().splitlines()) for run in (one, tmp_path / "two")]
    a, b = ([(row["loss"], row["supervised_labelled"]) for row in log if row["kind"] == "step"] for log in logs)
    assert len(a) == 4 and 0 < min(share for _, share in a) < 1
    assert all(x == pytest.approx(y, rel=1e-6) for x, y in zip(a, b, strict=True))
