"""I-JEPA: its blocks over many draws, its loss against plain loops, and how a collapse shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dino_tower import export_tower, load_tower
from dino_tower.errors import ConfigError
from dino_tower.pretrain.algorithms.multiblock import block_size, draw_blocks, place_blocks
from dino_tower.pretrain.config import load_preset, read_config
from dino_tower.pretrain.loading.draws import Place
from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.network.visible import visible_tokens
from dino_tower.pretrain.objectives.ijepa import DrawBlocks, Ijepa, Targets, variety
from dino_tower.pretrain.objectives.masked_settings import IjepaConfig
from dino_tower.pretrain.objectives.term import Inputs, Rates
from dino_tower.pretrain.settings import Config, CropsConfig, ModelConfig
from dino_tower.tokens import tokens

BATCH, SIDE, PATCH, RATES, DRAWS = 3, 6, 8, Rates(0.04), 2000
SETTINGS = Config(
    arch="vitt8",
    objective="ijepa",
    crops=CropsConfig(global_size=PATCH * SIDE, locals=0),
    model=ModelConfig(width=16, depth=2, heads=2, drop_path=0.0),
    ijepa=IjepaConfig(width=8, depth=2, heads=2, least=6),
)


def inputs(seed: int = 0) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    views = [torch.randn(BATCH, 3, PATCH * SIDE, PATCH * SIDE, generator=g) for _ in range(2)]
    draw = Ijepa.draw(SETTINGS, PATCH)
    drawn = [draw(Place(seed, 0, i, 0, i, BATCH)) for i in range(BATCH)]
    stacked = {name: torch.from_numpy(np.stack([one[name] for one in drawn])) for name in drawn[0]}
    return Inputs(views, torch.zeros(BATCH, dtype=torch.int64), drawn=stacked)


def test_blocks_over_two_thousand_draws() -> None:
    """Areas, shapes and places as the paper says, on the grid of 224 pixels and patches of 16."""
    rng, grid = np.random.default_rng(0), (14, 14)
    areas, ratios, corners, lefts, hidden = [], [], [], [], []
    for _ in range(DRAWS):
        targets, context = (found[0] for found in draw_blocks(rng, grid, 1))
        assert not np.isin(targets, context).any() and len(context) >= 10
        rows, columns = targets // 14, targets % 14
        height, width = (side.max(1) - side.min(1) + 1 for side in (rows, columns))
        assert (height * width == targets.shape[1]).all()  # whole rectangles, inside the picture, of one size
        assert len({*height.tolist()}) == len({*width.tolist()}) == 1
        areas.append(targets.shape[1] / 196)
        ratios.append(height[0] / width[0])
        corners += [(int(rows[i, 0]), 14 - int(height[i])) for i in range(4)]
        lefts.append(len(context))
        # a square of 13 or 14 patches a side, and all of it that is no target
        seen = np.union1d(context, targets.ravel())
        hidden.append(len(np.unique(targets)))
        assert len(seen) >= 13**2 and len(context) >= 13**2 - hidden[-1]
    # means of uniform draws, within 5 standard errors and what rounding to patches moves them
    assert abs(np.mean(areas) - 0.175) < 0.005 and min(areas) > 0.12 and max(areas) < 0.22
    assert abs(np.mean(ratios) - 1.125) < 0.05 and min(ratios) > 0.7 and max(ratios) < 1.8
    places = np.array([top / most for top, most in corners])
    assert abs(places.mean() - 0.5) < 5 * places.std() / np.sqrt(len(places))
    for edge in (0, 1):  # the first and the last row of places are as likely as any
        expected = np.mean([1 / (most + 1) for _, most in corners])
        share = (places == edge).mean()
        assert abs(share - expected) < 5 * np.sqrt(expected / len(places))
    assert 40 < np.mean(lefts) < 110


def test_sizes_are_uniform_in_area_and_aspect() -> None:
    rng = np.random.default_rng(1)
    sizes = np.array([block_size(rng, (200, 200), (0.15, 0.2), (0.75, 1.5)) for _ in range(DRAWS)])
    areas, ratios = sizes.prod(1) / 200**2, sizes[:, 0] / sizes[:, 1]
    for values, low, high in ((areas, 0.15, 0.2), (ratios, 0.75, 1.5)):
        counts = np.histogram(values, np.linspace(low, high, 11))[0]
        assert ((counts - DRAWS / 10) ** 2 / (DRAWS / 10)).sum() < 27.9  # chi-square, 9 degrees, one in a thousand
    assert abs(np.corrcoef(areas, ratios)[0, 1]) < 0.1  # drawn apart, unlike in the released code
    assert {block_size(rng, (14, 14), (0.85, 1.0)) for _ in range(100)} == {(13, 13), (14, 14)}
    assert block_size(rng, (4, 4), (0.01, 0.02), (1, 1)) == (1, 1)
    blocks = place_blocks(rng, (3, 5), (2, 4), (50, 2))
    assert blocks.shape == (50, 2, 15) and (blocks.sum(-1) == 8).all()


def test_all_pictures_of_a_step_have_one_shape_and_a_poor_one_is_drawn_again() -> None:
    rng = np.random.default_rng(0)
    for least in (1, 10):
        counts = [draw_blocks(rng, (6, 6), 64, least=least).context.shape[1] for _ in range(50)]
        assert (min(counts) >= 10) == (least == 10)
    blocks = draw_blocks(rng, (6, 6), 64)
    assert blocks.targets.shape[:2] == (64, 4) and all(len({*row}) == len(row) for row in blocks.context.tolist())
    with pytest.raises(ValueError, match="leave nothing of a context"):
        draw_blocks(rng, (4, 4), 2, targets=1, target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0))


def test_a_place_gets_its_blocks_whoever_asks_for_them() -> None:
    """Cut into processes and micro-batches, and by a stand-in for a picture that cannot be read."""
    draw = DrawBlocks((6, 6), SETTINGS.ijepa)
    step = [draw(Place(5, 2, 40 + i, 0, 16 + i, 8)) for i in range(8)]
    assert len({one["ijepa_context"].shape for one in step}) == len({one["ijepa_targets"].shape for one in step}) == 1
    assert len({one["ijepa_targets"].tobytes() for one in step}) == 8
    stand_in = draw(Place(5, 2, 99, 3, 21, 8))
    assert all(np.array_equal(stand_in[name], step[5][name]) for name in stand_in)
    other = draw(Place(5, 2, 45, 0, 29, 8))  # of the next step
    assert other["ijepa_targets"].tobytes() != step[5]["ijepa_targets"].tobytes()


def test_it_is_the_mean_over_blocks_each_predicted_alone() -> None:
    torch.manual_seed(0)
    student, teacher = make_networks(SETTINGS, torch.device("cpu"), world=1)
    given, term = inputs(), Ijepa(SETTINGS)
    with torch.no_grad():
        targets = term.targets(teacher, None, given, RATES)
        seen = tokens(teacher.backbone, given.views[0]).patches.flatten(1, 2)
    assert targets.blocks.mean(-1).abs().max() < 1e-5
    assert (targets.blocks.std(-1, correction=0) - 1).abs().max() < 1e-2
    keep, places = given.drawn["ijepa_context"], given.drawn["ijepa_targets"]
    predictor, losses = student.part("predictor"), []
    positions = predictor.positions
    for i in range(BATCH):
        context = visible_tokens(student.backbone, given.views[0][i : i + 1], keep[i : i + 1])[1][0]
        for block in places[i].tolist():
            x = [predictor.embed(token) + positions[place] for token, place in zip(context, keep[i], strict=True)]
            x = torch.stack([*x, *(predictor.mask_token + positions[place] for place in block)])[None]
            for layer in predictor.blocks:
                x = layer(x)
            said = predictor.answer(predictor.norm(x))[0, -len(block) :]
            for answer, place in zip(said, block, strict=True):
                want = F.layer_norm(seen[i, place], (16,))
                gap = (answer - want).abs()
                losses.append(torch.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean())
    loss = term.loss(student, None, given, targets, RATES)
    assert abs(loss.item() - torch.stack(losses).mean().item()) < 1e-5
    loss.backward()
    assert [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_student_sees_no_target() -> None:
    """Nor anything else outside its context; the teacher sees all of the picture."""
    student, teacher = make_networks(SETTINGS, torch.device("cpu"), world=1)
    given, term = inputs(), Ijepa(SETTINGS)
    other = torch.randn(given.views[0].shape, generator=torch.Generator().manual_seed(9))
    for picture, patches in enumerate(given.drawn["ijepa_context"].tolist()):
        for patch in patches:
            top, left = PATCH * (patch // SIDE), PATCH * (patch % SIDE)
            at = (picture, slice(None), slice(top, top + PATCH), slice(left, left + PATCH))
            other[at] = given.views[0][at]
    changed = Inputs([other, given.views[1] + 1], given.labels, drawn=given.drawn)
    with torch.no_grad():
        before, after = (term.targets(teacher, None, one, RATES) for one in (given, changed))
        losses = [term.loss(student, None, one, before, RATES) for one in (given, changed)]
    assert torch.equal(*losses)
    assert (before.blocks - after.blocks).abs().max() > 1e-2


def test_a_perfect_predictor_has_nothing_to_learn() -> None:
    student, teacher = make_networks(SETTINGS, torch.device("cpu"), world=1)
    given, term = inputs(), Ijepa(SETTINGS)

    class Knows(torch.nn.Module):
        def forward(self, front, seen, keep, asked):
            assert front.shape[1] == 0 and keep.shape[0] == asked.shape[0] == 4 * BATCH
            return targets.blocks.flatten(0, 1) + self.off

    student.predictor = Knows()
    targets = term.targets(teacher, None, given, RATES)
    for student.predictor.off, want in ((0, 0), (0.5, 0.125), (3, 2.5)):
        assert term.loss(student, None, given, targets, RATES).item() == pytest.approx(want, abs=1e-6)


def test_what_tells_a_collapse() -> None:
    g = torch.Generator().manual_seed(0)
    healthy, place = torch.randn(64, 9, 50, generator=g), torch.randn(1, 9, 50, generator=g)
    spread, rank = variety(healthy)
    assert spread == pytest.approx(1, abs=0.02) and rank == pytest.approx(50, rel=0.15)
    assert variety(place.expand(64, -1, -1))[0] < 1e-6  # each place its own answer, whatever the picture
    assert variety(healthy[:1])[0] > 0.9  # of one picture: over its places
    # pictures are unlike, but in one direction; in two, half of them in each
    one = torch.randn(64, 9, 1, generator=g) * torch.randn(50, generator=g)
    axes = torch.eye(50)[:2] * torch.randn(64, 9, 2, 1, generator=g)
    assert variety(one)[0] > 0.5 and variety(one)[1] == pytest.approx(1, abs=1e-4)
    assert variety(axes.sum(2))[1] == pytest.approx(2, abs=0.05)
    term = Ijepa(SETTINGS)
    rules = term.rules()
    for x, rung in ((healthy, []), (place + 0.02 * healthy, ["targets-collapse"]),
                    (one, ["targets-collapse-to-one-direction"])):  # fmt: skip
        row = term.health(Targets(x, x), torch.zeros(()))
        assert [name for name, rule in rules.items() if rule.sign(row)] == rung


def test_a_teacher_that_does_not_lag_collapses_and_the_log_tells(pretrain) -> None:
    """Into one direction, in which pictures still lie far apart: their spread looked healthy all the time."""
    ranks, spreads = {}, {}
    for name, momentum, lr in (("slow", "0.996", "0.001"), ("none", "0", "0.03")):
        run = pretrain(name, "--objective", "ijepa", "--ijepa.width", "16", "--ijepa.depth", "2", "--ijepa.heads", "2",
                       "--ijepa.least", "4", "--arch", "vitt8_siglip", "--steps", "50", "--teacher.momentum", momentum,
                       "--teacher.momentum-end", momentum, "--optim.base-lr", lr, "--optim.warmup-epochs", "0",
                       "--optim.clip", "0")  # fmt: skip
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        last = [row for row in rows if row["kind"] == "step"][-25:]
        ranks[name], spreads[name] = (np.median([row[f"target_{k}"] for row in last]) for k in ("rank", "spread"))
    assert ranks["slow"] > 2.5 and ranks["none"] < 1.7
    assert min(spreads.values()) > 0.4


@pytest.mark.parametrize("arch", ["vits8_reg4", "vits8_siglip"])
def test_a_run_leaves_a_tower_that_exports(pretrain, tmp_path: Path, arch: str) -> None:
    run = pretrain("run", "--objective", "ijepa", "--arch", arch, "--ijepa.width", "16", "--ijepa.depth", "1",
                   "--ijepa.heads", "2", "--ijepa.least", "4", "--steps", "6", "--monitor.minutes", "9",
                   "--monitor.knn-images", "40", "--optim.base-lr", "0.005", "--optim.warmup-epochs", "0")  # fmt: skip
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    assert steps[-1]["loss"] < steps[0]["loss"] and all(0.05 < row["target_spread"] <= 1 for row in steps)
    assert export_tower(run, tmp_path / "out") == 0
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_tower(tmp_path / "out")(x).patches, load_tower(run)(x).patches)
    assert load_tower(f"{run}@teacher")(x).patches.shape == (2, 4, 4, 32)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--arch resnet18", "terms.ijepa encodes some patches alone, which resnet18 cannot: take vits16 or another"),
        ("--ijepa.targets 0", "ijepa.targets is 0 and ijepa.least 8; they must be above 0"),
        (
            "--ijepa.target-scale 0.2 0.1",
            "ijepa.target_scale is (0.2, 0.1); give two shares of 0 to 1, the lower first",
        ),
        ("--ijepa.context-scale 0.8 1.2", "ijepa.context_scale is (0.8, 1.2); give two shares"),
        ("--ijepa.target-aspect 0 1", "ijepa.target_aspect is (0.0, 1.0); give height / width, the lower first"),
        ("--ijepa.targets 5", "ijepa.targets 5 of 0.2 can cover the whole context of 0.85: lower ijepa.targets"),
        ("--crops.global-size 24", "terms.ijepa needs 4 x 4 patches or more, and vitt8_siglip has 3 x 3 of a view"),
        ("--ijepa.heads 3", "ijepa.width is 64; it must be a multiple of ijepa.heads 3 and of 4"),
    ],
)
def test_what_cannot_be_is_one_line(words: str, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_config(["--preset", "ijepa_cpu", "--data", "scenes", "--output", "nowhere", *words.split()])
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_the_preset_changes_no_colours_and_no_sides() -> None:
    config = load_preset("ijepa_cpu")
    crops = config.crops
    assert (crops.locals, crops.flip, crops.jitter_p, crops.grayscale_p, *crops.blur_p, *crops.solarize_p) == (0,) * 10
    assert config.teacher.momentum == 0.996 and config.teacher.momentum_end == 1
    assert replace(config.ijepa, width=384, depth=12, heads=12, least=10) == IjepaConfig()
