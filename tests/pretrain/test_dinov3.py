"""What DINOv3 has beyond DINOv2, small: rotary positions at random scales, a constant rate, a renewed Gram anchor."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dino_tower import load_tower
from dino_tower.config import to_tree
from dino_tower.pretrain.config import load_preset
from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.objectives.objective import make_objective
from dino_tower.pretrain.objectives.settings import describe
from dino_tower.pretrain.plan import make_plan
from dino_tower.pretrain.settings import Config

SMALL = {
    "crops": {"global_size": 32, "local_size": 16, "locals": 2},
    "head": {"prototypes": 64, "hidden": 32, "bottleneck": 16},
    "ibot": {"prototypes": 32, "bottleneck": 8},
    "model": {"width": 32, "depth": 2, "heads": 2},
}


def words_of(config: Config, *sections: str) -> list[str]:
    """A preset's own sections as flags, with small sizes in place of its own."""
    found = []
    for section in sections:
        for key, value in {**to_tree(config)[section], **SMALL.get(section, {})}.items():
            values = [str(one) for one in value] if isinstance(value, list) else [str(value)]
            found += [f"--{section}.{key}".replace("_", "-"), *values]
    return found


def small(*flags: str) -> list[str]:
    """The settings of the preset on a tiny network."""
    config = load_preset("dinov3_vitl16")
    words = words_of(config, "crops", "model", "head", "loss", "terms", "ibot", "gram", "optim", "teacher")
    return ["--objective", config.objective, "--arch", "vits8_rope_reg4", *words, *flags]


def rows(run: Path, kind: str = "step") -> list[dict]:
    return [row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if row["kind"] == kind]


def test_the_preset_builds_and_is_dinov3s() -> None:
    """On no device: three hundred million parameters, and the anchor with as many."""
    config = load_preset("dinov3_vitl16")
    assert describe(config) == "dino + ibot + 0.1 koleo + 2 gram"
    with torch.device("meta"):
        student, teacher = make_networks(config, torch.device("meta"), world=1)
        objective = make_objective(config)
    assert 300e6 < sum(p.numel() for p in student.backbone.parameters()) < 307e6
    backbone = student.backbone
    assert type(backbone).__name__ == "DINOv3ViTModel" and backbone.config.num_register_tokens == 4
    assert backbone.config.rope_theta == 100 and backbone.config.pos_embed_rescale is None
    assert backbone.rope_embeddings.config.pos_embed_rescale == 2
    assert teacher.backbone.rope_embeddings.config.pos_embed_rescale is None
    assert [p.shape for p in student.prototypes()] == [(131072, 384), (131072, 256)]  # no gain: no weight norm
    anchor = objective.states()["gram_anchor"]
    assert sum(p.numel() for p in anchor.parameters()) == sum(p.numel() for p in backbone.parameters())
    assert anchor.due == [0, 10_000, 20_000, 30_000]
    plan = make_plan(replace(config, steps=1000), images=14_200_000, world=96)
    assert plan.lr.max() == plan.lr[-1] == pytest.approx(2e-4 * 3**0.5)
    assert len(np.unique(plan.momentum)) == len(np.unique(plan.weight_decay)) == 1 and plan.lr[0] == 0


def test_three_steps_of_the_same_settings_and_what_is_shipped(pretrain) -> None:
    """The anchor counts from the third step on; the tower that comes out has its positions where they are."""
    run = pretrain("run", *small("--compute.precision", "bf16"), "--steps", "3")
    found = rows(run)
    assert [row["gram_loss"] > 0 for row in found] == [False, False, True]
    assert all(np.isfinite(row["loss"]) for row in found)
    tower = load_tower(run)
    assert tower.model.config.pos_embed_rescale is None and tower.model.config.num_register_tokens == 4
    x = torch.randn(1, 3, 32, 48)
    assert tower(x).patches.shape == (1, 4, 6, 32)
    tower.model.train()
    assert torch.equal(tower(x).patches, tower(x).patches)
    heads = load_file(run / "checkpoints/step-3/heads.safetensors")
    assert not any(name.endswith("weight_g") for name in heads)


def test_positions_are_rescaled_for_the_student_alone() -> None:
    config = replace(load_preset("dinov3_vitl16"), arch="vits8_rope_reg4")
    for section, values in SMALL.items():
        config = replace(config, **{section: replace(getattr(config, section), **values)})
    student, teacher = make_networks(config, torch.device("cpu"), world=1)
    pixels = torch.zeros(1, 3, 32, 32)
    still, again = (teacher.backbone.rope_embeddings(pixels)[1][0, 3].asin() for _ in range(2))  # the slowest frequency
    assert still == again
    scales = torch.stack([student.backbone.rope_embeddings(pixels)[1][0, 3].asin() / still for _ in range(200)])
    assert 0.499 < scales.min() < 0.55 and 1.8 < scales.max() < 2.001 and 0.85 < scales.log().mean().exp() < 1.18


def test_an_anchor_to_the_runs_own_past_is_renewed_and_resumes_exactly(pretrain) -> None:
    """It counts from half of the run, is the teacher of then, and of every second step after that, twice."""
    flags = (
        "--terms.gram 2 --gram.tower self --gram.start 0.5 --gram.refresh 2 --gram.refreshes 1 --gram.scale 1 "
        "--teacher.momentum 0.5 --optim.warmup-epochs 0 --checkpoint-every 1 --faults.keep-last 20"
    ).split()
    run = pretrain("run", *flags, "--steps", "10")

    def weights(step: int, file: str, prefix: str = "") -> dict[str, torch.Tensor]:
        found = load_file(run / f"checkpoints/step-{step}/{file}.safetensors")
        return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}

    def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        names = [name for name in a if name.endswith("fc1.weight")]
        return bool(names) and all(any(torch.equal(a[name], other) for other in b.values()) for name in names)

    anchors = {step: weights(step, "heads", "gram_anchor.backbone.") for step in range(1, 11)}
    teachers = {step: weights(step, "teacher/model") for step in range(1, 11)}
    copied = {step: [t for t in teachers if same(anchors[step], teachers[t])] for step in anchors}
    assert copied == {**{step: [] for step in range(1, 6)}, 6: [5], 7: [5], 8: [7], 9: [7], 10: [7]}
    assert [row["gram_loss"] > 0 for row in rows(run)] == [False] * 5 + [True] * 5
    cut = run.with_name("cut")
    shutil.copytree(run, cut)
    for step in range(7, 11):
        shutil.rmtree(cut / f"checkpoints/step-{step}")
    pretrain("cut", *flags, "--steps", "10", "--resume")
    for part in ("student/model", "teacher/model", "heads", "optimizer"):
        a, b = (load_file(one / f"checkpoints/step-10/{part}.safetensors") for one in (run, cut))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), part


def test_an_anchor_that_starts_as_another_tower(pretrain) -> None:
    first = pretrain("first", "--steps", "1")
    flags = ("--terms.gram", "2", "--gram.tower", str(first), "--gram.refresh", "2", "--gram.scale", "1")
    run = pretrain("run", *flags, "--steps", "3", "--checkpoint-every", "1", "--faults.keep-last", "9")
    start = load_tower(first).model.state_dict()
    for step, alike in ((1, True), (2, True), (3, False)):
        anchor = load_file(run / f"checkpoints/step-{step}/heads.safetensors")
        pairs = [(v, anchor[f"gram_anchor.backbone.{k}"]) for k, v in start.items() if k.endswith("fc1.weight")]
        assert pairs and all(torch.equal(a, b) for a, b in pairs) == alike
