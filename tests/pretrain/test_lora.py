"""Self-distillation by an adapter: one base under student and teacher, only the adapter and the heads learn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from dino_tower import load_tower
from dino_tower.architectures import build
from dino_tower.checkpoint import load_tensors, read_json
from dino_tower.cli import main
from dino_tower.errors import ConfigError
from dino_tower.export.writing import export_tower
from dino_tower.images import processor_for
from dino_tower.peft_adapter import base_path
from dino_tower.pretrain.config import read_config
from dino_tower.pretrain.network.networks import make_networks
from dino_tower.pretrain.network.student_teacher import Network, update_teacher
from dino_tower.pretrain.optim import groups_of

SIDE, PATCH = 32, 8
FLAGS = {
    "--task": "ssl", "--data": "scenes", "--steps": "4", "--batch-size": "8", "--workers": "0",
    "--head.prototypes": "64", "--head.hidden": "32", "--head.bottleneck": "16", "--crops.local-size": "16",
    "--crops.locals": "2", "--optim.base-lr": "1e-3", "--compute.precision": "no", "--compute.cpu": "true",
    "--monitor.minutes": "0", "--monitor.tracker": "none", "--monitor.log-every": "1",
}  # fmt: skip
PIXELS = torch.randn(2, 3, SIDE, SIDE + PATCH, generator=torch.Generator().manual_seed(0))
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """base(arch="vits8", seed=0): a directory with a small tower whose weights are not as regular as new ones."""
    made: dict[tuple[str, int], Path] = {}

    def make(arch: str = "vits8", seed: int = 0) -> Path:
        if (arch, seed) not in made:
            made[arch, seed] = folder = tmp_path_factory.mktemp("bases") / f"{arch}-{seed}"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = build(arch, image_size=SIDE, width=32, depth=2, heads=2)
                for name, p in model.named_parameters():
                    if not name.endswith(("mask_token", "lambda1")):
                        p.data += 0.05 * torch.randn_like(p)
            model.save_pretrained(folder)
            processor_for(SIDE, PATCH).save_pretrained(folder)
        return made[arch, seed]

    return make


def words(of: Path | str, output: Path, *flags: str) -> list[str]:
    given = {flag for flag in flags if flag.startswith("--")}
    short = [word for key, value in FLAGS.items() if key not in given for word in (key, value)]
    return ["adapt", str(of), *short, *flags, "--output", str(output)]


@pytest.fixture
def run(tmp_path: Path, new_process: Callable[[], None], base: Callable[..., Path]) -> Iterator[Run]:
    """run("name", "--steps", "2", of=TOWER) -> the run directory, by the real command with tiny settings."""

    def start(name: str, *flags: str, of: Path | str | None = None, code: int = 0) -> Path:
        new_process()
        assert main(words(of or base(), tmp_path / name, *flags)) == code
        return tmp_path / name

    yield start


def networks(of: Path, *flags: str) -> tuple[Any, Network, Network]:
    argv = ["--preset", "dino_lora", "--init-from", str(of), "--data", "scenes", "--output", "x", "--lora.rank", "2"]
    small = "--head.prototypes 64 --head.hidden 32 --head.bottleneck 16 --crops.global-size 32 --crops.local-size 16"
    config = read_config([*argv, *small.split(), *flags])
    return config, *make_networks(config, torch.device("cpu"), world=1)


def learned(run: Path, step: int = 4) -> dict[str, bytes]:
    folder = run / f"checkpoints/step-{step}"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for line in (run / "log.jsonl").read_text().splitlines() if (row := json.loads(line))["kind"] == kind]


@pytest.mark.parametrize("arch", ["vits8", "vits8_reg4", "vits8_rope", "vits8_siglip", "vits8_clip"])
def test_student_and_teacher_share_one_base(arch: str, base: Callable[..., Path]) -> None:
    """The teacher has an adapter and heads of its own, the moving average of the student's; the rest is one tensor."""
    config, student, teacher = networks(base(arch))
    mine, theirs = dict(student.backbone.named_parameters()), dict(teacher.backbone.named_parameters())
    trained = {name for name, p in mine.items() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert {name for name in mine if mine[name] is not theirs[name]} == trained
    held = [p for group in groups_of(student, config.optim) for p in group["params"]]
    heads = {id(p) for p in student.part("head").parameters() if p.requires_grad}
    assert {id(p) for p in held} == {id(mine[name]) for name in trained} | heads

    plain = AutoModel.from_pretrained(base(arch)).state_dict()
    before = {name: theirs[name].clone() for name in theirs}
    for name in trained:
        mine[name].data += 1
    update_teacher(teacher, student, momentum=0.75)
    for name, p in theirs.items():
        moved = 0.25 * (before[name] + 1) + 0.75 * before[name] if name in trained else before[name]
        assert torch.allclose(p, moved, atol=1e-6)
        if name not in trained and "lambda1" not in name:
            assert torch.equal(p, plain[name.replace(".base_layer", "")])


@pytest.mark.parametrize(
    ("arch", "flags"),
    [
        ("vits8", "--method lora --peft.rank 2 --peft.alpha 8 --peft.modules q_proj v_proj"),
        ("vits8_siglip", "--method ia3"),
        ("vits8_clip", "--method oft --peft.rank 8"),
    ],
)
def test_a_run_leaves_adapters_heads_and_a_merged_tower(
    arch: str, flags: str, run: Run, base: Callable[..., Path], tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in base(arch).iterdir()}
    done = run("run", "--steps", "2", "--merge", *flags.split(), of=base(arch))
    assert {path.name: path.read_bytes() for path in base(arch).iterdir()} == before

    for who in ("student", "teacher"):
        folder = done / f"checkpoints/step-2/{who}"
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "base.json"
        }  # fmt: skip
        assert (folder / read_json(folder / "adapter_config.json")["base_model_name_or_path"]).samefile(base(arch))
    names = {name.split(".")[0] for name in load_tensors(done / "checkpoints/step-2/optimizer.safetensors")}
    assert names == {"backbone", "head"}

    plain, student, teacher = (load_tower(place) for place in (base(arch), done, f"{done}@teacher"))
    assert type(student.model) is type(plain.model)
    features = student(PIXELS).patches
    assert not torch.equal(features, plain(PIXELS).patches) and not torch.equal(features, teacher(PIXELS).patches)
    assert (load_tower(done / "merged")(PIXELS).patches - features).abs().max() <= 2e-6 * features.abs().max()
    assert export_tower(done, tmp_path / "out", weights="teacher") == 0
    assert torch.equal(load_tower(tmp_path / "out")(PIXELS).patches, teacher(PIXELS).patches)
    twins = [load_tower(f"random:{place}")(PIXELS).patches for place in (done, base(arch))]
    assert torch.equal(*twins)
    assert load_tower(done, dtype="bfloat16")(PIXELS).patches.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "flags", ["", "--objective dinov2 --compute.accumulate 2 --batch-size 4 --compute.precision bf16"]
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(flags: str, run: Run) -> None:
    whole = run("whole", *flags.split())
    cut = run("cut", *flags.split(), "--checkpoint-every", "2")
    shutil.rmtree(cut / "checkpoints/step-4")
    run("cut", *flags.split(), "--resume", "--merge")
    assert learned(cut) == learned(whole) and "teacher/adapter_model.safetensors" in learned(cut)
    assert [row["step"] for row in rows(cut, "start")] == [0, 2] and (cut / "merged/config.json").is_file()


def test_a_run_goes_on_without_being_told_its_tower(run: Run, new_process: Callable[[], None]) -> None:
    """And with --merge a finished one is merged, once."""
    done = run("run", "--steps", "2")
    for _ in range(2):
        new_process()
        assert main(["adapt", "--task", "ssl", "--resume", "--merge", "--output", str(done)]) == 0
    assert load_tower(done / "merged").family == "dinov2" and len(rows(done, "start")) == 1


def test_two_processes_learn_what_one_does(run: Run, lives: Any, base: Callable[..., Path], tmp_path: Path) -> None:
    flags = ("--optim.base-lr", "1e-4")
    one = run("one", *flags)
    ranks = lives.start_ranks(words(base(), tmp_path / "two", *flags, "--batch-size", "4", "--merge"), 2)
    assert [lives.wait(rank) for rank in ranks] == [0, 0], lives.said(ranks[0])
    losses = [[row["loss"] for row in rows(place, "step")] for place in (one, tmp_path / "two")]
    assert len(losses[0]) == 4 and max(abs(a - b) / a for a, b in zip(*losses, strict=True)) <= 1e-6
    for part in ("student/adapter_model", "teacher/adapter_model", "heads"):
        a, b = (load_tensors(place / f"checkpoints/step-4/{part}.safetensors") for place in (one, tmp_path / "two"))
        assert max(float((a[name] - b[name]).abs().max()) for name in a) <= 1e-5, part
    assert (tmp_path / "two/merged/config.json").is_file()


def test_the_monitor_looks_without_a_copy_of_the_base(run: Run, base: Callable[..., Path]) -> None:
    """Before the first step the teacher is the base itself; the untrained floor is neither."""
    flags = "--monitor.minutes 1000 --monitor.knn-images 60 --monitor.pictures 1"
    done = run("run", "--steps", "2", *flags.split())
    first, last = rows(done, "monitor")
    assert set(first["knn"]) == set(first["random_knn"]) and first["rankme"] > 1
    assert (done / last["pictures"][0]).is_file()


def test_a_run_can_be_the_base_of_another(run: Run, base: Callable[..., Path]) -> None:
    first = run("first", "--steps", "2")
    second = run("second", "--steps", "2", of=first)
    start = load_tower(first)(PIXELS).patches
    # the directory that other software reads below an adapter: never that of another adapter
    assert base_path(str(first)) == base_path(f"{first}@teacher") == ""
    (first / "merged").mkdir()
    assert base_path(str(first)) == str(first / "merged") and base_path(f"{first}@teacher") == ""
    assert (load_tower(second)(PIXELS).patches - start).abs().max() > 1e-6
    student, teacher = (first / f"checkpoints/step-2/{who}/adapter_model.safetensors" for who in ("student", "teacher"))
    shutil.copy(teacher, student)
    with pytest.raises(ConfigError, match="the weights below it are others"):
        load_tower(second)


def test_a_run_whose_base_has_changed_cannot_go_on(
    run: Run, base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    shutil.copytree(base(), own)
    cut = run("run", "--checkpoint-every", "2", of=own)
    shutil.rmtree(cut / "checkpoints/step-4")
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file() and path.name != ".lock"}
    shutil.copy(base(seed=1) / "model.safetensors", own)
    capsys.readouterr()
    run("run", "--resume", of=own, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "an adapter for another base" in line and "start a new run" in line
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file() and path.name != ".lock"} == before
    with pytest.raises(ConfigError, match="the weights below it are others"):
        load_tower(cut)


def test_blocks_that_recompute_drop_nothing(tmp_path) -> None:
    """They do so in train mode only, in which the dropout and the dropped paths that a tower was saved with came to
    life."""
    from transformers import Dinov2Config, Dinov2Model

    from dino_tower.images import processor_for
    from dino_tower.pretrain.config import read_config
    from dino_tower.pretrain.network.lora import open_base

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    chances = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"), 0.5)
    Dinov2Model(Dinov2Config(**sizes, **chances)).save_pretrained(tmp_path)
    processor_for(32, 8).save_pretrained(tmp_path)
    words = ["--preset", "dino_lora", "--init-from", str(tmp_path), "--data", "scenes", "--output", "x"]
    sides = ["--crops.global-size", "32", "--crops.local-size", "16", "--compute.activation-checkpointing"]
    base = open_base(read_config([*words, *sides]))
    x = torch.randn(2, 3, 32, 32)
    assert base.training and torch.equal(base(x).last_hidden_state, base(x).last_hidden_state)
