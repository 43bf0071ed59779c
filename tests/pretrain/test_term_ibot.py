"""The masked-patch term against a plain double loop over images and patches, and what it does at the edges."""

from __future__ import annotations

import pytest
import torch

from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.objectives.ibot import Ibot
from dino_tower.pretrain.objectives.objective import make_objective
from dino_tower.pretrain.objectives.settings import IbotConfig, TermsConfig
from dino_tower.pretrain.objectives.term import Inputs, Rates
from dino_tower.pretrain.settings import Config, CropsConfig, HeadConfig, LossConfig, ModelConfig
from dino_tower.tokens import tokens

BATCH, SIDE, PROTOTYPES, TEMPERATURE = 3, 4, 24, 0.05


def settings(head: str = "shared", batch_norm: bool = False, **ibot: object) -> Config:
    return Config(
        arch="vitt8",
        objective="ibot",
        crops=CropsConfig(global_size=8 * SIDE, local_size=16, locals=1),
        model=ModelConfig(width=16, depth=1, heads=2, drop_path=0.0),
        head=HeadConfig(prototypes=PROTOTYPES, hidden=12, bottleneck=6, norm_last_layer=False, batch_norm=batch_norm),
        ibot=IbotConfig(head=head, **ibot),  # type: ignore[arg-type]
    )


def inputs(hidden: int = 9) -> Inputs:
    g = torch.Generator().manual_seed(0)
    views = [torch.randn(BATCH, 3, size, size, generator=g) for size in (8 * SIDE, 8 * SIDE, 16)]
    masks = torch.zeros(BATCH * 2 * SIDE**2, dtype=torch.bool)
    masks[torch.randperm(SIDE**2 * 4, generator=g)[:hidden]] = True  # of the first two images only
    return Inputs(views, torch.zeros(BATCH, dtype=torch.int64), drawn={"masks": masks.view(BATCH, 2, SIDE, SIDE)})


@pytest.mark.parametrize(("head", "last"), [("shared", "head.last_layer"), ("mlp", "patch_prototypes"),
                                            ("separate", "patch_head.last_layer")])  # fmt: skip
def test_it_is_the_mean_over_hidden_patches_then_over_views(head: str, last: str) -> None:
    config = settings(head)
    student, teacher = make_networks(config, torch.device("cpu"), world=1)
    with torch.no_grad():
        student.backbone.embeddings.mask_token.normal_()
    given, term, rates = inputs(), Ibot(config), Rates(TEMPERATURE)
    term.patch_centre.centre.normal_(generator=torch.Generator().manual_seed(1))
    mlp = student.part("patch_head" if head == "separate" else "head")

    def logits(network, views, masks):  # [2 B, N, K]
        seen = tokens(network.backbone, torch.cat(views), masks).patches.flatten(1, 2)
        part = network.part("patch_head" if head == "separate" else "head")
        return network.part(last)(part.project(seen.flatten(0, 1))).unflatten(0, seen.shape[:2])

    masks = given.masks.flatten(0, 1)
    with torch.no_grad():
        t = logits(teacher, given.views[:2], None)
        want_targets = ((t - term.patch_centre.centre) / TEMPERATURE).softmax(-1)
        s = (logits(student, given.views[:2], masks) / 0.1).log_softmax(-1)
    want = 0.0
    for image in range(2 * BATCH):
        hidden = masks[image].flatten().nonzero()[:, 0].tolist()
        each = [-(want_targets[image, n] * s[image, n]).sum() for n in hidden]
        want += sum(each) / max(1, len(each)) / (2 * BATCH)
    with torch.no_grad():
        targets = term.targets(teacher, teacher.see(given.views[:2]), given, rates)
    assert torch.allclose(targets, want_targets[masks.flatten(1)], atol=1e-6)
    loss = term.loss(student, student.see(given.views, given.masks), given, targets, rates)
    assert abs(loss.item() - float(want)) < 1e-5
    loss.backward()
    assert mlp.mlp[0].weight.grad.abs().max() > 0 and student.backbone.embeddings.mask_token.grad.abs().max() > 0
    centre = term.patch_centre.centre.clone()
    term.commit()
    assert torch.allclose(term.patch_centre.centre, 0.9 * centre + 0.1 * t.mean((0, 1)), atol=1e-6)


def test_the_centre_of_the_masked_patches_alone() -> None:
    config = settings(centre="masked")
    _, teacher = make_networks(config, torch.device("cpu"), world=1)
    given, term = inputs(), Ibot(config)
    seen = teacher.see(given.views[:2])
    term.targets(teacher, seen, given, Rates(TEMPERATURE))
    term.commit()
    hidden = seen.patches[given.masks]
    assert torch.allclose(term.patch_centre.centre, 0.1 * teacher.part("head")(hidden).mean(0), atol=1e-6)


@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
@pytest.mark.parametrize("hidden", [0, 1])
def test_hardly_anything_hidden_is_no_fault(hidden: int, centring: str) -> None:
    """A batch norm refused the only row, and the mean of no rows is not a number."""
    config = settings(batch_norm=True, centre="masked")
    config = Config(**{**vars(config), "loss": LossConfig(centring=centring)})
    student, teacher = make_networks(config, torch.device("cpu"), world=1)
    objective, given, rates = make_objective(config), inputs(hidden), Rates(TEMPERATURE)
    targets = objective.targets(teacher, given, rates)
    losses = objective.losses(student, given, targets, rates)
    losses["loss"].backward()
    objective.commit()
    assert (losses["ibot"] == 0) == (hidden == 0)
    assert all(torch.isfinite(torch.tensor(value)) for value in objective.health(targets, losses).values())
    assert all(torch.isfinite(buffer).all() for buffer in objective.buffers())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters() if p.requires_grad)


def test_terms_are_summed_with_their_weights() -> None:
    plain, scaled = settings(), Config(**{**vars(settings()), "terms": TermsConfig(ibot=3.0, koleo=0.5)})
    found = []
    for config in (plain, scaled):
        student, teacher = make_networks(config, torch.device("cpu"), world=1)
        objective, given = make_objective(config), inputs()
        targets = objective.targets(teacher, given, Rates(TEMPERATURE))
        found.append(objective.losses(student, given, targets, Rates(TEMPERATURE)))
    a, b = found
    assert a.keys() == {"loss", "dino", "ibot"} and b.keys() == {"loss", "dino", "ibot", "koleo"}
    assert torch.allclose(a["loss"], a["dino"] + a["ibot"])
    assert torch.allclose(b["loss"], b["dino"] + 3 * b["ibot"] + 0.5 * b["koleo"])
    assert torch.equal(a["dino"], b["dino"]) and torch.equal(a["ibot"], b["ibot"])


def test_collapse_of_the_patches_has_alarms_of_its_own() -> None:
    rules = make_objective(settings()).rules()
    kinds = ("collapse-to-uniform", "collapse-to-one-prototype")
    assert set(rules) == {*kinds, *(f"patch-{kind}" for kind in kinds)}
    healthy = {"entropy": 1.0, "usage_entropy": 2.0, "patch_entropy": 1.0, "patch_usage_entropy": 2.0}
    assert not any(rule.sign(healthy) for rule in rules.values())
    dead = {**healthy, "patch_entropy": 0.0, "patch_usage_entropy": 0.0}
    assert [name for name, rule in rules.items() if rule.sign(dead)] == ["patch-collapse-to-one-prototype"]
