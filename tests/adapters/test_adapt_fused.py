"""Adapters in a fused tower: in each of its members, of whatever class, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModel

from dino_tower import load_tower
from dino_tower.adapters.fusion import fuse_towers
from dino_tower.adapters.loading import load_adapted
from dino_tower.checkpoint import load_tensors, read_json
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.peft_adapter import Base, adapter_writer, inner, load_adapter, merged, weights_digest, wrap
from dino_tower.peft_methods import PeftSettings
from dino_tower.tokens import tokens
from dino_tower.tower import Tower

PIXELS = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
RANKS = {"oft": 8, "vera": 8, "ia3": None, "ln-tuning": None}
CLIP_MEAN, CLIP_STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.fixture(scope="module")
def fused(tower: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """fused(fusion): a directory with a plain tower and a CLIP one that knows pixels by another mean, fused."""
    made: dict[str, Path] = {}

    def make(fusion: str = "concat") -> Path:
        if fusion not in made:
            other = Tower(load_tower(tower("vits8_clip", 1)).model, processor_for(32, 8, CLIP_MEAN, CLIP_STD), "other")
            made[fusion] = tmp_path_factory.mktemp("fused") / fusion
            fuse_towers([load_tower(tower("vits8_reg4")), other], fusion, output=made[fusion])
        return made[fusion]

    return make


@torch.no_grad()
def patches(of: torch.nn.Module) -> torch.Tensor:
    return tokens(inner(of), PIXELS).patches


@pytest.mark.parametrize("method", ["lora", "dora", "oft", "vera", "ia3", "ln-tuning"])
def test_each_method_in_each_member(method: str, fused: Callable[..., Path], tmp_path: Path) -> None:
    before = load_tower(fused("sum")).model
    fresh = wrap(load_tower(fused("sum")).model, method, PeftSettings(rank=RANKS.get(method, 4))).eval()
    features = patches(before)
    assert (patches(fresh) - features).abs().max() < 2e-6  # training starts from the tower
    trained = [name for name, p in fresh.named_parameters() if p.requires_grad]
    assert {name.split("members.")[1][0] for name in trained} == {"0", "1"}
    tokens(inner(fresh), PIXELS).patches.square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in fresh.parameters())  # else DDP would wait for it

    rng = torch.Generator().manual_seed(2)
    for p in fresh.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn(p.shape, generator=rng)
    after = patches(fresh)
    assert (after - features).abs().max() > 1e-4
    adapter_writer(fresh, Base("fused", str(fused("sum")), weights_digest(before), method))(tmp_path)
    again = load_adapter(load_tower(fused("sum")).model, tmp_path).eval()
    theirs = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(fused("sum")), tmp_path).eval()
    assert torch.equal(patches(again), after) and torch.equal(patches(theirs), after)
    plain = merged(fresh)
    assert type(plain) is type(before) and plain.state_dict().keys() == before.state_dict().keys()
    assert (patches(plain) - after).abs().max() <= 2e-6


def test_the_command_adapts_and_merges_a_fused_tower(adapt: Callable[..., Path], fused: Callable[..., Path]) -> None:
    run = adapt("run", "--merge", "--optim.lr", "0.01", of=fused("interleave"))
    before, after, whole = (load_tower(place) for place in (fused("interleave"), run, run / "merged"))
    assert whole.family == "dino_tower_fused" and whole.width == before.width
    features = load_adapted(run).model.eval().tokens(PIXELS)[0].patches.detach()
    assert (features - before(PIXELS).patches).abs().max() > 1e-5
    for one in (after, whole):
        assert (one(PIXELS).patches - features).abs().max() <= 2e-6
    moved = {name.split(".")[1] for name, p in before.weights().items() if not torch.equal(p, whole.weights()[name])}
    assert moved == {"0", "1"}  # both members, and no projection
    assert "import dino_tower.fused" in (run / "merged/README.md").read_text()


def test_a_fused_tower_learns_without_labels(
    fused: Callable[..., Path], tmp_path: Path, new_process: Callable[[], None]
) -> None:
    from dino_tower.cli import main

    new_process()
    flags = (
        "--task ssl --data scenes --steps 2 --batch-size 4 --workers 0 --peft.rank 2 --head.prototypes 64 "
        "--head.hidden 32 --head.bottleneck 16 --crops.local-size 16 --crops.locals 1 --optim.base-lr 0.01 "
        "--compute.precision no --compute.cpu true --monitor.minutes 100 --monitor.knn-images 40 "
        "--monitor.tracker none --merge --output"
    )
    run = tmp_path / "run"
    assert main(["adapt", str(fused()), *flags.split(), str(run)]) == 0
    assert read_json(run / "checkpoints/step-2/student/adapter_config.json")["peft_type"] == "LORA"
    names = load_tensors(run / "checkpoints/step-2/student/adapter_model.safetensors")
    assert {name.split("members.")[1][0] for name in names} == {"0", "1"}
    student = load_tower(run)
    assert (student(PIXELS).patches - load_tower(run / "merged")(PIXELS).patches).abs().max() <= 2e-6


def test_members_that_take_no_adapter_and_layers_that_one_lacks(
    fused: Callable[..., Path], tower: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no layer for lora to adapt 'o_proj'"):  # CLIP calls it out_proj
        wrap(load_tower(fused()).model, "lora", PeftSettings(modules=("o_proj",)))
    chosen = wrap(load_tower(fused()).model, "lora", PeftSettings(modules=("q_proj", "fc2")))
    kinds = {name.split(".lora_")[0].split(".")[-1] for name, p in chosen.named_parameters() if p.requires_grad}
    assert kinds == {"q_proj", "fc2"}
    fuse_towers([load_tower(tower()), load_tower("random:resnet8")], output=tmp_path / "mixed")
    with pytest.raises(ConfigError, match="a resnet has none that are known; take a ViT, or train a head"):
        wrap(load_tower(tmp_path / "mixed").model, "lora")
