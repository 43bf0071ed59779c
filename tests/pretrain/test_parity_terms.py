"""The terms beyond DINO's against the numbers of the authors' code (what each file holds: tests/parity/README.md)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_tower.pretrain.algorithms.centre import Centre
from dino_tower.pretrain.algorithms.koleo import koleo
from dino_tower.pretrain.algorithms.layer_decay import layer_multiplier
from dino_tower.pretrain.algorithms.losses import dino_loss
from dino_tower.pretrain.algorithms.patch_loss import masked_weights, patch_loss
from dino_tower.pretrain.algorithms.schedules import stepped_warmup
from dino_tower.pretrain.algorithms.sinkhorn import sinkhorn

IBOT_TEMPERATURES = (0.04, 0.07, 2)  # not in the file: first, last, epochs of warm-up (tests/parity/README.md)
IBOT_STUDENT_TEMPERATURE = 0.1


def load(folder: Path, name: str) -> dict[str, torch.Tensor]:
    with np.load(folder / f"{name}.npz") as file:
        return {k: torch.from_numpy(np.array(file[k])) for k in file if file[k].dtype.kind != "U"}


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Equal to `tolerance` of the largest entry."""
    assert got.shape == want.shape
    gap = (got.double() - want.double()).abs().max() / want.double().abs().max()
    assert gap <= tolerance, f"{gap:.2e} > {tolerance:.0e}"


def test_ibot_loss_gradients_and_both_centres(parity_train: Path) -> None:
    data = load(parity_train, "ibot_loss")
    steps = sum(k.startswith("cls") for k in data)
    assert steps > 0
    batch, prototypes, patch_prototypes = int(data["batch"]), data["sc0"].shape[-1], data["sp0"].shape[-1]
    centre, patch_centre = Centre(prototypes), Centre(patch_prototypes)
    temperatures = stepped_warmup(*IBOT_TEMPERATURES, steps)
    for i in range(steps):
        student, patches, local = (data[f"{name}{i}"].clone().requires_grad_() for name in ("sc", "sp", "sl"))
        teacher, teacher_patches = data[f"tc{i}"], data[f"tp{i}"]
        masks = data[f"mask{i}"].flatten(2).flatten(0, 1)
        assert masks.shape == patches.shape[:2] == (2 * batch, int(data["patches"]))
        targets = centre.targets(teacher.unflatten(0, (2, batch)), temperatures[i])
        patch_targets = patch_centre.targets(teacher_patches[masks], temperatures[i])
        for one, logits in ((centre, teacher), (patch_centre, teacher_patches)):
            one.observe(logits)
            one.commit()
        # the file holds logits: with the unit matrix for prototypes, what goes in are the logits
        z = torch.cat([student, local]).unflatten(0, (-1, batch))
        cls = dino_loss(z, torch.eye(prototypes), targets, IBOT_STUDENT_TEMPERATURE)
        patch = patch_loss(
            patches[masks],
            torch.eye(patch_prototypes),
            patch_targets,
            masked_weights(masks),
            IBOT_STUDENT_TEMPERATURE,
        )
        (cls + patch).backward()
        assert_close(cls.detach(), data[f"cls{i}"], 1e-6)
        assert_close(patch.detach(), data[f"patch{i}"], 1e-6)
        for name, leaf in (("gsc", student), ("gsp", patches), ("gsl", local)):
            assert leaf.grad is not None
            assert_close(leaf.grad, data[f"{name}{i}"], 1e-6)
        assert_close(centre.centre, data[f"center{i}"], 1e-6)
        assert_close(patch_centre.centre[None], data[f"center2{i}"], 1e-6)


def test_dinov2_loss_of_masked_patches(parity_train: Path) -> None:
    data = load(parity_train, "ibot_patch_masked")
    student = data["student"].clone().requires_grad_()
    prototypes, weights = torch.eye(student.shape[1]), masked_weights(data["masks"])
    loss = patch_loss(student, prototypes, data["teacher"], weights, float(data["student_temp"]))
    loss.backward()
    assert_close(loss.detach(), data["loss"], 1e-6)
    assert student.grad is not None
    assert_close(student.grad, data["grad"], 1e-6)


def published_sinkhorn(logits: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """The published form, on exponentials."""
    q = (logits / temperature).exp().T
    prototypes, rows = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / rows
    return (q * rows).T


@pytest.mark.parametrize("name", ["sinkhorn_cls", "sinkhorn_patch"])
def test_sinkhorn(parity_train: Path, name: str) -> None:
    data = load(parity_train, name)
    logits, temperature = data["logits"], float(data["temp"])
    iterations = int(data.get("n_iterations", torch.tensor(3)))
    assert len(logits) == int(data.get("n_masked", torch.tensor(len(logits))))
    got = sinkhorn(logits, temperature, iterations)
    assert_close(got, data["assignment"], 1e-6)
    assert_close(published_sinkhorn(logits, temperature, iterations), data["assignment"], 1e-6)
    exact = published_sinkhorn(logits.double(), temperature, iterations)
    assert_close(sinkhorn(logits.double(), temperature, iterations), exact, 1e-14)


def test_koleo_and_its_gradient(parity_train: Path) -> None:
    data = load(parity_train, "koleo")
    x = data["x"].clone().requires_grad_()
    loss = koleo(x)
    loss.backward()
    assert_close(loss.detach(), data["loss"], 1e-6)
    assert x.grad is not None
    assert_close(x.grad, data["grad"], 1e-6)


def test_layer_decay(parity_train: Path) -> None:
    with np.load(parity_train / "layer_decay.npz") as data:
        names, rate, layers = data["names"].tolist(), float(data["rate"]), int(data["layers"])
        want = data["multiplier"]
    assert len(names) == len(want) > 0
    got = np.array([layer_multiplier(name, rate, layers) for name in names])
    assert np.abs(got - want).max() <= 1e-12


def test_every_file_has_its_test() -> None:
    here = Path(__file__).parent
    tests = "".join((here / f"test_parity_{part}.py").read_text() for part in ("dino", "terms"))
    stems = [file.stem for file in sorted((here.parent / "parity" / "train").glob("*.npz"))]
    assert stems
    assert [stem for stem in stems if re.sub("[0-9].*|(?<=trajectory_).*", "", stem) not in tests] == []
