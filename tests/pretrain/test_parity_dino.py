"""Our parts against the numbers of the authors' code (tests/parity/README.md says what each file holds)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from dino_tower.convert import native_to_original, original_to_native
from dino_tower.positions import use_reference_interpolation
from dino_tower.pretrain.algorithms.centre import Centre
from dino_tower.pretrain.algorithms.heads import DinoHead
from dino_tower.pretrain.algorithms.losses import dino_loss
from dino_tower.pretrain.algorithms.schedules import cosine, stepped_warmup
from dino_tower.pretrain.network.student_teacher import Network, Student, make_teacher, update_teacher
from dino_tower.pretrain.objectives.objective import make_objective
from dino_tower.pretrain.objectives.term import Inputs, Rates
from dino_tower.pretrain.optim import CLIP, OPTIMISERS, parameter_groups, set_rates
from dino_tower.pretrain.settings import Config, HeadConfig, LossConfig
from dino_tower.tokens import last_attention, tokens

STUDENT_TEMPERATURE = 0.1  # the constants that are not in the files: tests/parity/README.md
TEACHER_TEMPERATURES = (0.04, 0.07)
TRAJECTORY_HEADS = 3


def load(folder: Path, name: str) -> dict[str, torch.Tensor]:
    with np.load(folder / f"{name}.npz") as file:
        return {k: torch.from_numpy(np.array(file[k])) for k in file if file[k].dtype.kind != "U"}


def part(data: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Equal to `tolerance` of the largest entry."""
    assert got.shape == want.shape
    gap = (got.double() - want.double()).abs().max() / want.abs().max()
    assert gap <= tolerance, f"{gap:.2e} > {tolerance:.0e}"


@pytest.mark.parametrize("locals_", [0, 8])
def test_loss_gradient_and_centre(parity_train: Path, locals_: int) -> None:
    data = load(parity_train, f"dino_loss_v{locals_}")
    views, batch = 2 + int(data["local_crops"]), int(data["batch"])
    centre = Centre(int(data["out_dim"]), float(data["center_momentum"]))
    steps = sum(k.startswith("loss") for k in data)
    assert steps > 0
    for i in range(steps):
        student = data[f"s{i}"].clone().requires_grad_()
        teacher = data[f"t{i}"].unflatten(0, (2, batch))
        targets = centre.targets(teacher, float(data[f"temp{i}"]))
        centre.observe(teacher)
        centre.commit()
        # the file holds logits: with the unit matrix for prototypes, what goes in are the logits
        z, prototypes = student.unflatten(0, (views, batch)), torch.eye(student.shape[1])
        loss = dino_loss(z, prototypes, targets, float(data["student_temp"]))
        loss.backward()
        assert_close(loss.detach(), data[f"loss{i}"], 1e-6)
        assert_close(student.grad, data[f"grad{i}"], 1e-6)
        assert_close(centre.centre, data[f"center{i}"], 1e-6)


@pytest.mark.parametrize("norm_last_layer", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_head(parity_train: Path, norm_last_layer: bool, batch_norm: bool) -> None:
    data = load(parity_train, f"dino_head_norm{norm_last_layer:d}_bn{batch_norm:d}")
    weights = part(data, "sd/")
    (hidden, width), (prototypes, bottleneck) = weights["mlp.0.weight"].shape, weights["last_layer.weight_v"].shape
    head = DinoHead(width, prototypes, hidden, bottleneck, norm_last_layer, batch_norm).eval()
    head.load_state_dict(weights, strict=True)
    trainable = {name: bool(v) for name, v in part(data, "trainable/").items()}
    assert {name: p.requires_grad for name, p in head.named_parameters()} == trainable
    x = data["x"].clone().requires_grad_()
    y = head(x)
    (y * torch.arange(prototypes)).sum().backward()
    assert_close(y.detach(), data["y"], 1e-6)
    assert_close(x.grad, data["gx"], 1e-6)


def original_vit(weights: dict[str, torch.Tensor], heads: int, eager: bool = False) -> Dinov2Model:
    native = original_to_native(weights)
    dim, _, patch, _ = native["embeddings.patch_embeddings.projection.weight"].shape
    side = round((native["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        hidden_size=dim,
        num_hidden_layers=1 + max(int(k.split(".")[2]) for k in native if "layer." in k),
        num_attention_heads=heads,
        patch_size=patch,
        image_size=side * patch,
        layer_norm_eps=1e-6,
        attn_implementation="eager" if eager else "sdpa",
    )
    model = Dinov2Model(config)
    model.load_state_dict(native, strict=True)
    use_reference_interpolation(model)
    return model


@pytest.mark.parametrize("eager", [False, True])
def test_vit_in_reference_mode(parity_train: Path, eager: bool) -> None:
    data = load(parity_train, "vit_original")
    model = original_vit(part(data, "sd/"), int(data["heads"]), eager).eval()
    sizes = [k.removeprefix("x/") for k in data if k.startswith("x/")]
    assert sizes
    for size in sizes:
        x = data[f"x/{size}"]
        with torch.no_grad():
            out = tokens(model, x)
            placeholder = torch.empty(1, data[f"tokens/{size}"].shape[1], int(data["dim"]))
            table = model.embeddings.interpolate_pos_encoding(placeholder, *x.shape[-2:])
        assert_close(table, data[f"pos/{size}"], 1e-6)
        assert_close(out.cls, data[f"cls/{size}"], 1e-6)
        assert_close(out.patches.flatten(1, 2), data[f"tokens/{size}"][:, 1:], 1e-6)
        if eager:
            attention = last_attention(model, x)
            assert_close(attention.flatten(2), data[f"attn/{size}"][:, :, 0, 1:], 1e-6)


def test_conversion_is_its_own_inverse(parity_train: Path) -> None:
    weights = part(load(parity_train, "vit_original"), "sd/")
    back = native_to_original(original_to_native(weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[k], weights[k]) for k in weights)


def test_schedules(parity_train: Path) -> None:
    data = load(parity_train, "schedules")
    count = sum(k.startswith("args") for k in data)
    assert count > 0
    for i in range(count):
        base, final, epochs, iters, warmup = data[f"args{i}"].tolist()
        values = cosine(base, final, int(epochs * iters), int(warmup * iters))
        assert np.abs(values - data[f"values{i}"].numpy()).max() <= 1e-12
    start, final, warmup, epochs = data["teacher_temp_args"].tolist()
    values = stepped_warmup(start, final, int(warmup), int(epochs))
    assert np.abs(values - data["teacher_temp"].numpy()).max() <= 1e-12


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_trajectory(parity_train: Path, optimiser: str) -> None:
    """Whole steps, from the authors' initial weights to their final ones."""
    data = load(parity_train, f"trajectory_{optimiser}")
    names = np.load(parity_train / f"trajectory_{optimiser}.npz")
    init = part(data, "init/")
    head_weights = part(init, "head.")
    (hidden, width), (prototypes, bottleneck) = (head_weights[k].shape for k in ("mlp.0.weight", "last_layer.weight_v"))
    head = DinoHead(width, prototypes, hidden, bottleneck, norm_last_layer=False)
    head.load_state_dict(head_weights, strict=True)
    network = Network(original_vit(part(init, "backbone."), TRAJECTORY_HEADS), head=head)
    for name, p in network.backbone.named_parameters():
        p.requires_grad_(not name.endswith(("lambda1", "mask_token")))
    teacher = make_teacher(network)
    config = Config(head=HeadConfig(prototypes=prototypes), loss=LossConfig(student_temp=STUDENT_TEMPERATURE))
    objective = make_objective(config)
    student = Student(network, objective)
    groups = parameter_groups([network.backbone, network.head])
    # the authors count each block's fused qkv once, we have its three parts
    decayed = [n for n in names["decay"].tolist() if "qkv" not in n]
    assert len(groups[0]["params"]) == len(decayed) + 3 * (len(names["decay"]) - len(decayed))
    optimizer = OPTIMISERS[optimiser](groups)

    steps, iters = len(data["lr"]), int(data["iters"])
    run = SimpleNamespace(lr=data["lr"].tolist(), wd=data["wd"].tolist(), momentum=data["momentum"].tolist())
    for i in range(steps):
        epoch = i // iters
        set_rates(optimizer, run.lr[i], run.wd[i])
        globals_ = list(data[f"global{i}"])
        locals_ = list(data[f"local{i}"])
        inputs = Inputs(globals_ + locals_, torch.zeros(len(globals_[0])))
        rates = Rates(TEACHER_TEMPERATURES[epoch])
        loss = student(inputs, objective.targets(teacher, inputs, rates), rates)["loss"]
        objective.commit()
        optimizer.zero_grad()
        loss.backward()
        CLIP["per_parameter"](student.named_parameters(), float(data["clip_per_parameter"]))
        if epoch < int(data["freeze_last_layer_epochs"]):
            for p in network.head.last_layer.parameters():
                p.grad = None
        optimizer.step()
        update_teacher(teacher, network, run.momentum[i])
        assert abs(loss.item() - float(data[f"loss{i}"])) <= 1e-5
    assert (objective.states()["centre"].centre - data["center"]).abs().max() <= 1e-5
    for who, net in (("student", network), ("teacher", teacher)):
        want = part(data, f"{who}/")
        got = {f"backbone.{k}": v for k, v in native_to_original(net.backbone.state_dict()).items()}
        got |= {f"head.{k}": v for k, v in net.head.state_dict().items()}
        assert got.keys() == want.keys()
        for name, value in want.items():
            gap = (got[name] - value).abs()
            if name.endswith("qkv.bias"):  # key biases: a true gradient of zero, Adam turns rounding into steps
                keys = slice(width, 2 * width)
                assert gap[keys].max() <= 1e-4, name
                gap[keys] = 0
            assert gap.max() <= 1e-5, f"{who} {name} {gap.max():.1e}"
