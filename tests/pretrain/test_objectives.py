"""What the main job promises of DINO it promises of every objective, with all their parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dino_tower import export_tower, load_tower
from dino_tower.architectures import build
from dino_tower.checkpoint import checkpoints

DINOV2 = (
    "--objective dinov2 --arch vits8_reg4 --ibot.head separate --ibot.prototypes 32 --ibot.bottleneck 8 "
    "--ibot.masks stratified --loss.centring sinkhorn --head.batch-norm false --model.layerscale 1e-5 --model.swiglu "
    "--model.token-std 1e-6 --model.drop-path 0.3 --model.drop-path-uniform --optim.layer-decay 0.9 "
    "--optim.patch-embed-lr 0.2 --optim.clip-mode per_module"
).split()
MAE = "--objective mae --mae.width 16 --mae.depth 2 --mae.heads 2".split()
IJEPA = "--objective ijepa --ijepa.width 16 --ijepa.depth 2 --ijepa.heads 2 --ijepa.least 4".split()
CLIP = (
    "--objective clip --clip.vocabulary 300 --clip.read 20 --clip.length 24 --clip.width 16 --clip.depth 1 "
    "--clip.heads 2 --clip.embedding 8"
).split()
SIMCLR = "--objective simclr --simclr.hidden 16 --simclr.outputs 8".split()
OBJECTIVES = {
    "ibot": ["--objective", "ibot", "--model.drop-path", "0.2"],
    "dinov2": DINOV2,
    "mae": [*MAE, "--model.drop-path", "0.2"],
    "ijepa": IJEPA,
    "clip": [*CLIP, "--model.drop-path", "0.2"],
    "siglip": [*CLIP, "--clip.loss", "siglip", "--clip.captions", "any", "--clip.views", "2"],
    "simclr": [*SIMCLR, "--model.drop-path", "0.2"],
    "supervised": ["--objective", "supervised", "--model.drop-path", "0.2"],
}
MASKS = ("--objective", "ibot", "--ibot.masks")
# With these, a step is the same however its batch is cut: no statistics of a part of it, no random paths.
JOINT = {
    "block": [*MASKS, "block", "--ibot.head", "mlp"],
    "stratified": [*MASKS, "stratified", "--ibot.head", "mlp", "--ibot.centre", "masked"],
    "mae": MAE,
    "ijepa": [*IJEPA, "--arch", "vits8_siglip"],
    "supervised": ["--objective", "supervised", "--supervised.views", "2"],
}
SPREAD = [*MASKS, "stratified", "--ibot.centre", "masked", "--ibot.head", "separate", "--head.norm-last-layer", "false"]
SPREAD += ["--head.freeze-epochs", "0.02"]
ACROSS = {
    "centre": [*SPREAD, "--loss.centring", "centre"],
    "sinkhorn": [*SPREAD, "--loss.centring", "sinkhorn"],
    "mae": JOINT["mae"],
    "ijepa": JOINT["ijepa"],
    "clip": [*CLIP, "--clip.captions", "any"],
    "siglip": [*CLIP, "--clip.loss", "siglip", "--clip.views", "2"],
    "simclr": SIMCLR,
    "supervised": ["--objective", "supervised"],
}
# A batch norm behind it takes off whatever the last norm of the backbone adds, and its mean follows.
TAKEN_OFF = {"simclr": ("layernorm.bias", "running_mean")}
# what no step moves, beside gains and counters: a LayerScale of 1, mask tokens that nobody sees
STILL = {
    "ibot": ("lambda1", "teacher/model.safetensors/embeddings.mask_token"),
    "mae": ("lambda1", "embeddings.mask_token"),
    "ijepa": ("lambda1", "embeddings.mask_token"),
    "clip": ("lambda1", "embeddings.mask_token", "merges"),
    "siglip": ("lambda1", "embeddings.mask_token", "merges"),
    "simclr": ("lambda1", "embeddings.mask_token", "simclr.4.bias"),
    "supervised": ("lambda1", "embeddings.mask_token"),
}


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint."""
    folder = run / "checkpoints" / f"step-{step}"
    return {
        f"{file.relative_to(folder)}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def largest_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], aside: tuple[str, ...] = ()) -> float:
    """Key biases aside, and `aside`: their gradient is zero in truth and rounding in practice."""
    assert a.keys() == b.keys()
    names = [n for n in a if not any(word in n for word in ("/step", "k_proj.bias", "key.bias", *aside))]
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in names)


def rows(run: Path, kind: str) -> list[dict]:
    return [row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if row["kind"] == kind]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_has_the_weights_of_one_never_stopped(pretrain, name: str) -> None:
    """Masks and centres included, wherever the masks are drawn."""
    flags = OBJECTIVES[name]
    whole = pretrain("whole", *flags, "--steps", "4", "--checkpoint-every", "2")
    cut = whole.with_name("cut")
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-4")
    pretrain("cut", *flags, "--resume", "--steps", "4", "--workers", "1")
    a, b = weights(whole, 4), weights(cut, 4)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    before = weights(whole, 2)
    assert ("heads.safetensors/patch_centre.centre" in a) == (name == "ibot")
    still = {key for key in a if not key.startswith("optimizer") and torch.equal(a[key], before[key])}
    frozen = STILL.get(name, ())
    assert {key for key in still if not key.endswith((*frozen, "weight_g", "num_batches_tracked"))} == set()


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
def test_a_run_leaves_a_tower_that_loads_and_exports(pretrain, name: str, tmp_path: Path) -> None:
    run = pretrain("run", *OBJECTIVES[name], "--steps", "2", "--monitor.minutes", "9", "--monitor.knn-images", "40")
    tower = load_tower(run)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert export_tower(run, tmp_path / "out") == 0
    exported = load_tower(tmp_path / "out")
    assert torch.equal(exported(x).patches, tower(x).patches) and exported(x).cls.shape == (2, 32)
    assert tower.model.embeddings.mask_token.abs().max() > 0  # it starts at zero, and was trained
    last = rows(run, "step")[-1]
    assert last["loss"] == pytest.approx(
        last["dino_loss"] + last["ibot_loss"] + 0.1 * last.get("koleo_loss", 0), rel=1e-5
    )
    asked = {f"backbone.{n}" for n, p in tower.model.named_parameters() if "lambda1" not in n or name == "dinov2"}
    assert asked <= {
        n.rpartition("/")[0] for n in load_file(checkpoints(run / "checkpoints")[-1] / "optimizer.safetensors")
    }


@pytest.mark.parametrize("name", ["ibot", "mae", "ijepa", "clip", "simclr", "supervised"])
def test_a_step_with_nothing_finite_changes_nothing(pretrain, monkeypatch, name: str) -> None:
    """Neither the two networks nor the optimiser nor either centre, of class tokens and of patches."""
    from dino_tower.pretrain import train
    from dino_tower.pretrain.loading.pixels import Normalise

    calls, bad = 0, -1

    class Poisoned(Normalise):
        def __call__(self, view):
            nonlocal calls
            calls += 1
            pixels = super().__call__(view)
            return pixels * float("nan") if calls == bad else pixels

    monkeypatch.setattr(train, "Normalise", Poisoned)
    pretrain("one", *OBJECTIVES[name], "--steps", "1")
    calls, bad = 0, 2 * calls + 1  # one view of the third step, however many views this objective reads
    run = pretrain("run", *OBJECTIVES[name], "--steps", "3", "--checkpoint-every", "1", "--faults.keep-last", "9")
    assert [row["step"] for row in rows(run, "bad_step")] == [2]
    assert largest_gap(weights(run, 1), weights(run, 2)) > 0
    assert largest_gap(weights(run, 2), weights(run, 3)) == 0


@pytest.mark.parametrize("name", JOINT)
def test_accumulation_equals_the_joint_batch(pretrain, name: str) -> None:
    """Of the masks too: DINOv2 spreads the hidden shares over all views of a step, whatever it is cut into."""
    flags = (*JOINT[name], "--steps", "4", "--head.batch-norm", "false", "--optim.base-lr", "1e-4")
    joint = pretrain("joint", *flags)
    parts = pretrain("parts", *flags, "--batch-size", "4", "--compute.accumulate", "2")
    assert largest_gap(weights(joint, 4), weights(parts, 4)) <= 1e-5


@pytest.mark.parametrize("name", ACROSS)
def test_two_processes_equal_one_with_the_joint_batch(pretrain, lives, tiny, tmp_path: Path, name: str) -> None:
    """Sinkhorn-Knopp and the patches' centre over all processes, of which each has its own number of hidden patches."""
    flags = [*ACROSS[name], "--steps", "4", "--head.batch-norm", "false", "--optim.base-lr", "1e-4"]
    one = pretrain("one", *flags)
    words = ["pretrain", *tiny(*flags, "--batch-size", "4"), "--output", str(tmp_path / "two")]
    ranks = lives.start_ranks(words, 2)
    assert [lives.wait(rank) for rank in ranks] == [0, 0], lives.said(ranks[0])
    a, b = ([row["loss"] for row in rows(run, "step")] for run in (one, tmp_path / "two"))
    assert len(a) == len(b) == 4 and max(abs(x - y) / x for x, y in zip(a, b, strict=True)) <= 1e-6
    assert largest_gap(weights(one, 4), weights(tmp_path / "two", 4), TAKEN_OFF.get(name, ())) <= 1e-5


@pytest.mark.parametrize("arch", ["vits8_rope", "vits8"])
def test_every_class_with_a_mask_token_learns_from_masks(pretrain, arch: str) -> None:
    run = pretrain("run", "--objective", "ibot", "--arch", arch, "--steps", "2", "--compute.precision", "bf16")
    trained = load_tower(run).model
    fresh = build(arch, image_size=32, width=32, depth=2, heads=2)
    assert type(trained) is type(fresh) and trained.embeddings.mask_token.abs().max() > 0
    assert all(torch.isfinite(torch.tensor(row["ibot_loss"])) for row in rows(run, "step"))


def test_a_dino_run_of_before_goes_on(pretrain) -> None:
    """Terms came later: a run without them in its config.yaml and state.json is one of DINO's."""
    import yaml

    from dino_tower.checkpoint import write_digests

    run = pretrain("run", "--steps", "4", "--checkpoint-every", "2")
    want = weights(run, 4)
    shutil.rmtree(run / "checkpoints" / "step-4")
    old = run / "checkpoints" / "step-2"
    state, settings = json.loads((old / "state.json").read_text()), yaml.safe_load((run / "config.yaml").read_text())
    for tree in (state["resolved"], settings):
        assert tree.pop("objective") == "dino"
        del tree["terms"], tree["ibot"]
        assert tree["loss"].pop("centring") == "centre" and tree["optim"].pop("layer_decay") == 1
    (old / "state.json").write_text(json.dumps(state))
    write_digests(old)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    pretrain("run", "--resume", "--steps", "4")
    got = weights(run, 4)
    assert want.keys() == got.keys() and all(torch.equal(want[key], got[key]) for key in want)
    assert {name.split("/")[1].split(".")[0] for name in got if name.startswith("heads")} == {
        "student",
        "teacher",
        "centre",
    }
