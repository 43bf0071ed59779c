"""`dino-tower adapt` from the words to a directory that other software loads, and that goes on where it was stopped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from dino_tower import image_tokens_for, load_tower
from dino_tower.adapters.config import read_config
from dino_tower.adapters.finish import loading_line
from dino_tower.adapters.loading import load_adapted
from dino_tower.adapters.train import train
from dino_tower.checkpoint import load_tensors, read_json
from dino_tower.errors import ConfigError
from dino_tower.scenes import make_scene
from dino_tower.signals import StopSignals

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Adapt = Callable[..., Path]


def rows(run: Path, kind: str) -> list[dict]:
    return [row for line in (run / "log.jsonl").read_text().splitlines() if (row := json.loads(line))["kind"] == kind]


def learned(run: Path) -> dict[str, bytes]:
    """All that a run has learned, and the state it would go on from."""
    files = [
        *run.glob("*.safetensors"),
        *run.glob("checkpoints/step-4/*.safetensors"),
        *run.glob("merged/*.safetensors"),
    ]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def test_an_adapter_its_head_and_the_merged_tower(
    adapt: Adapt, tower: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = adapt("run", "--task", "classify", "--steps", "4", "--merge", "--optim.lr", "0.01")
    losses = [row["loss"] for row in rows(run, "step")]
    assert len(losses) == 4 and all(np.isfinite(losses))
    (start,) = rows(run, "start")
    assert start["trained_in_tower"] == sum(v.numel() for v in load_tensors(run / "adapter_model.safetensors").values())

    said = read_json(run / "adapter_config.json")
    assert said["base_model_name_or_path"].startswith("..") and said["peft_type"] == "LORA"
    adapted = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tower()), run).eval()
    with torch.no_grad():
        features = adapted(PIXELS).last_hidden_state[:, 1:]
        plain, info = AutoModel.from_pretrained(run / "merged", output_loading_info=True)
        merged = plain.eval()(PIXELS).last_hidden_state[:, 1:]
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before = load_tower(tower())(PIXELS).patches.flatten(1, 2)
    assert (features - before).abs().max() > 1e-5
    assert (features - merged).abs().max() <= 2e-6
    # the run itself is a TOWER: its base with the adapter inside
    assert (load_tower(run)(PIXELS).patches.flatten(1, 2) - features).abs().max() <= 2e-6

    twins = [load_tower(f"random:{place}")(PIXELS).patches for place in (run, tower())]
    assert torch.equal(*twins)  # the control of an adapted tower is untrained, too

    (snippet,) = [
        code for code in re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(), re.S) if "Peft" in code
    ]
    monkeypatch.chdir(run)
    names: dict = {}
    exec(snippet, names)
    with torch.no_grad():
        assert torch.equal(names["tower"].eval()(PIXELS).last_hidden_state[:, 1:], features)

    used = load_adapted(run)
    found = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert len(found) == 24 and used.score["accuracy"] == pytest.approx(np.mean([row["right"] for row in found]))
    for row in found[:3]:
        scene = make_scene("easy", int(row["id"].split("-")[1]), "test")
        assert used.predict([Image.fromarray(scene.image)])[0] == row["answer"]


def test_a_frozen_tower_under_a_head(adapt: Adapt, tower: Callable[..., Path], masked: Path) -> None:
    run = adapt("run", "--data", str(masked), "--method", "none", "--head.kind", "conv", "--head.channels", "8")
    assert not (run / "adapter_config.json").exists() and not (run / "merged").exists()
    assert {path.name for path in (run / "checkpoints/step-2").iterdir()} == {
        "head.safetensors", "optimizer.safetensors", "state.json", "digests.json"
    }  # fmt: skip
    assert torch.equal(load_tower(run)(PIXELS).patches, load_tower(tower())(PIXELS).patches)
    picture = masked / "images/01.png"
    (answer,) = load_adapted(run).predict([picture])
    assert answer.shape == (32, 40) and answer.dtype == np.uint8 and answer.max() <= 1


def test_depth_with_a_pyramid_and_a_tower_without_class_token(
    adapt: Adapt, tower: Callable[..., Path], depths: Path
) -> None:
    flags = "--method ia3 --head.kind pyramid --head.channels 8 --head.bins 16 --target.high 5 --batch-size 2".split()
    run = adapt("run", "--task", "depth", "--data", str(depths), *flags, of=tower("vits8_siglip"))
    used = load_adapted(run)
    assert set(used.score) == {"pictures", "rmse", "a1"}
    (answer,) = used.predict([depths / "rgb/3.png"])
    assert answer.shape == (32, 40) and 0 < answer.min() <= answer.max() <= 5


def test_a_whole_tower_stays_what_it_is_shipped_as(adapt: Adapt, tower: Callable[..., Path]) -> None:
    run = adapt("run", "--method", "full", "--optim.tower-lr", "0.01")
    before, after = (load_tower(place).model.state_dict() for place in (tower(), run))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    still = {name for name in before if name.endswith(("lambda1", "mask_token"))}
    assert moved and not moved & still and moved | still == set(before)
    assert load_adapted(run).model.frozen  # what was trained lies in merged/


@pytest.mark.parametrize(
    "flags",
    [
        "--method lora --peft.rank 2 --peft.dropout 0.5 --merge",
        "--method full --head.kind conv --head.channels 8 --head.dropout 0.5",
        "--method oft --peft.rank 8 --compute.precision bf16 --compute.accumulate 2 --batch-size 2",
    ],
    ids=["lora with dropout", "full", "bf16 and accumulation"],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(adapt: Adapt, flags: str) -> None:
    whole = adapt("whole", "--steps", "4", *flags.split())
    cut = adapt("cut", "--steps", "4", "--checkpoint-every", "2", *flags.split())
    shutil.rmtree(cut / "checkpoints/step-4")
    for name in ("adapted.json", "head.safetensors", "adapter_model.safetensors", "merged"):
        path = cut / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    adapt("cut", "--resume", "--steps", "4", *flags.split())
    assert learned(cut) == learned(whole) and "head.safetensors" in learned(cut)
    assert [row["step"] for row in rows(cut, "start")] == [0, 2]


def test_a_stop_signal_leaves_a_checkpoint_to_go_on_from(
    adapt: Adapt, tower: Callable[..., Path], tmp_path: Path, new_process: Callable[[], None]
) -> None:
    whole = adapt("whole", "--steps", "4")
    words = (whole / "log.jsonl").read_text().splitlines()
    argv = json.loads(words[0])["command"].split()
    argv[argv.index(str(whole))] = str(tmp_path / "stopped")
    new_process()
    with StopSignals() as signals:
        signals.received = "SIGTERM"
        assert train(read_config(argv), signals, argv) == 3
    stopped = tmp_path / "stopped"
    assert (stopped / "latest").read_text() == "step-1\n" and not (stopped / "adapted.json").exists()
    adapt("stopped", "--steps", "4", "--resume")
    assert learned(stopped) == learned(whole)


def test_what_is_finished_is_left_alone(adapt: Adapt) -> None:
    run = adapt("run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    adapt("run", "--resume")
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_data_that_shrank_leaves_a_run_its_length(adapt: Adapt, masked: Path, tmp_path: Path, capsys) -> None:
    """The new plan ended before the checkpoint's step: the run was finished there, at another length."""
    photos = tmp_path / "photos"
    shutil.copytree(masked, photos)
    (photos / "val.txt").write_text("00\n")
    flags = ("--data", str(photos), "--steps", "none", "--epochs", "3", "--batch-size", "3", "--checkpoint-every", "2")
    run = adapt("run", *flags)
    assert rows(run, "end")[-1]["step"] == 9
    shutil.rmtree(run / "checkpoints/step-9")
    (run / "adapted.json").unlink()
    for number in range(5, 12):
        (photos / f"images/{number:02d}.png").unlink()
        (photos / f"masks/{number:02d}.png").unlink()
    adapt("run", *flags, "--resume")
    assert [row["step"] for row in rows(run, "end")] == [9, 9] and (run / "adapted.json").is_file()
    assert "the data has 4 images and had 11" in capsys.readouterr().out


def test_a_finished_run_can_be_merged(adapt: Adapt) -> None:
    """--resume --merge said that there was nothing to do."""
    run, other = adapt("run"), adapt("other", "--merge")
    adapt("run", "--resume", "--merge")
    assert learned(run) == learned(other) and "merged/model.safetensors" in learned(run)


def test_masks_of_which_no_pixel_counts_do_not_lose_what_was_learned(
    adapt: Adapt, masked: Path, tmp_path: Path
) -> None:
    """The score of nothing ended a run after its last step, before anything was written, and again on --resume."""
    shutil.copytree(masked, tmp_path / "data")
    (tmp_path / "data/val.txt").write_text("03\n05\n")
    for name in ("03", "05"):
        Image.fromarray(np.full((32, 40), 255, np.uint8)).save(tmp_path / f"data/masks/{name}.png")
    assert load_adapted(adapt("run", "--data", str(tmp_path / "data"))).score == {"pictures": 2}


def test_the_card_says_how_a_tower_without_a_directory_is_loaded(
    adapt: Adapt, tower: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained twin was handed to AutoModel.from_pretrained, a directory in timm's format to timm as a model."""
    run = adapt("run", "--method", "ln-tuning", of=f"random:{tower()}")
    text = (run / "README.md").read_text()
    monkeypatch.chdir(run)
    names: dict = {}
    exec(next(code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "Peft" in code), names)
    with torch.no_grad():
        found = names["tower"].eval()(PIXELS).last_hidden_state[:, 1:]
    assert (load_tower(run)(PIXELS).patches.flatten(1, 2) - found).abs().max() <= 2e-6
    at = f"{run.parent}/mine"
    Path(at).mkdir()
    assert loading_line(f"timm:{at}", run, False)[1] == (
        'timm.create_model("local-dir:../mine", pretrained=True, num_classes=0)'
    )
    assert loading_line("owner/name", run, False)[1] == 'AutoModel.from_pretrained("owner/name")'


def test_a_loss_that_is_no_number_ends_the_run_when_it_lasts(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    import dino_tower.adapters.dense_heads as heads

    real = heads.LinearHead.forward
    monkeypatch.setattr(heads.LinearHead, "forward", lambda self, layers: real(self, layers) * float("nan"))
    run = adapt("run", "--steps", "8", "--faults.max-bad-steps", "2", code=2)
    assert len(rows(run, "bad_step")) == 3 and not list(run.glob("checkpoints/step-*"))


def test_alarms_ring_when_nothing_is_learned(adapt: Adapt) -> None:
    run = adapt("run", "--steps", "70", "--optim.lr", "0", "--method", "none", "--monitor.validate", "false")
    assert "nothing-learned" in {row["name"] for row in rows(run, "alarm")}


def test_an_adaptation_can_be_adapted_again(adapt: Adapt, tower: Callable[..., Path]) -> None:
    first = adapt("first", "--merge")
    second = adapt("second", "--task", "classify", of=first)
    assert read_json(second / "adapter_config.json")["base_model_name_or_path"] == "../first/merged"
    assert load_adapted(second).task == "classify"
    assert not torch.equal(load_tower(second)(PIXELS).patches, load_tower(first)(PIXELS).patches)
    # a VLM can be asked about one by its name, though it has no config.json of its own
    wanted = image_tokens_for("LlavaForConditionalGeneration", str(first), image_size=32)
    assert wanted == image_tokens_for("LlavaForConditionalGeneration", str(tower()), image_size=32)


def test_an_adapter_whose_base_has_changed_is_refused(adapt: Adapt, tower: Callable[..., Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tower(), base)
    run = adapt("run", of=base)
    shutil.copy(tower(seed=1) / "model.safetensors", base)
    with pytest.raises(ConfigError, match="an adapter for another base"):
        load_adapted(run)
    with pytest.raises(ConfigError, match="the weights below it are others"):
        load_tower(run)
