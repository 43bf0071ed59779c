"""The two stages: what learns, what does not, and a result that loads, also after an interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from dino_tower import load_tower
from dino_tower.adapters.fusion import fuse_towers
from dino_tower.adapters.vlm import build_vlm, tower_of
from dino_tower.adapters.vlm.answers import accuracy, ask
from dino_tower.adapters.vlm.training import words_of
from dino_tower.checkpoint import load_tensors
from dino_tower.cli import main
from dino_tower.errors import ConfigError
from dino_tower.tower import Tower

SMALL = {
    "--compute.cpu": "true",
    "--language.rank": "2",
    "--language.alpha": "4",
    "--stage1.batch-size": "4",
    "--stage2.batch-size": "4",
    "--monitor.log-every": "1",
    "--checkpoint-every": "2",
}


def small(flags: str) -> list[str]:
    """`flags`, and those of SMALL that are not among them."""
    given = flags.split()
    return [word for key, value in SMALL.items() if key not in given for word in (key, value)] + given


@pytest.fixture
def train(
    conversations: Path, language_model: Path, tmp_path: Path, new_process: Callable[[], None]
) -> Callable[..., Path]:
    """train(tower, name, flags): the command's run."""

    def run(tower: Tower, name: str, flags: str = "", code: int = 0) -> Path:
        new_process()
        out = tmp_path / name
        words = f"adapt {tower.name} --task vlm --data {conversations} --language-model {language_model} --output {out}"
        assert main([*words.split(), *small(flags)]) == code
        return out

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_stages_train_what_they_should(
    train: Callable[..., Path], towers: dict[str, Tower], language_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage 1 moves the projector alone; stage 2 the language model too, and the tower where that is asked for."""
    start = build_vlm(towers["plain"], language_model)[0].state_dict()

    def moved(out: Path) -> set[str]:
        now = weights(out)
        assert now.keys() == start.keys()
        return {".".join(key.split(".")[:2]) for key, value in now.items() if not torch.equal(value, start[key])}

    first = train(towers["plain"], "first", "--stage1.steps 3 --stage2.steps 0")
    assert moved(first) <= {"model.multi_modal_projector"}
    assert (
        "stage 1: 8 conversations, 16 tokens a picture; weights that learn: projector 2,112" in capsys.readouterr().out
    )
    second = train(towers["plain"], "second", "--stage1.steps 0 --stage2.steps 2 --stage2.lr 0.01")
    assert moved(second) == {"model.multi_modal_projector", "model.language_model"}
    both = train(towers["plain"], "both", "--stage1.steps 0 --stage2.steps 2 --method lora --peft.rank 2")
    assert moved(both) == {"model.multi_modal_projector", "model.language_model", "model.vision_tower"}
    whole = train(
        towers["plain"],
        "whole",
        "--stage1.steps 0 --stage2.steps 2 --method full --language.method full --stage2.lr 0.001",
    )
    assert moved(whole) == {
        "model.multi_modal_projector",
        "model.language_model",
        "model.vision_tower",
        "lm_head.weight",
    }


def test_it_learns_to_tell_red_from_blue(
    train: Callable[..., Path], towers: dict[str, Tower], conversations: Path
) -> None:
    """End to end: what was trained answers about the pictures it was trained on, by way of transformers alone."""
    flags = "--stage1.steps 2 --stage2.steps 100 --stage2.lr 0.005 --checkpoint-every 200 --language.method full"
    out = train(towers["siglip"], "out", flags)
    losses = [row["loss"] for row in rows(out)]
    stages = [(row["stage"], row["step"]) for row in rows(out)]
    assert stages == [(1, 1), (1, 2), *((2, i) for i in range(1, 101))]
    assert losses[-1] < 0.5 * losses[0]
    vlm, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]}]
    prompt = processor.apply_chat_template(question, add_generation_prompt=True)
    for i, colour in ((0, "red"), (1, "blue")):
        batch = processor(images=Image.open(conversations.parent / f"{i}.png"), text=prompt, return_tensors="pt")
        written = vlm.generate(**batch, max_new_tokens=3, do_sample=False)[0, batch.input_ids.shape[1] :]
        assert processor.tokenizer.decode(written) == f"{colour} ring </s>"
    answers = ask(vlm, processor, conversations, batch_size=3)
    assert [answer.wanted for answer in answers] == ["red ring", "blue ring"] * 3 + ["yes", "no"]
    assert [answer.given for answer in answers[:2]] == ["red ring", "blue ring"]
    assert accuracy(answers)["all"] == sum(answer.right for answer in answers) / 8 >= 6 / 8


def test_interrupted_and_resumed(train: Callable[..., Path], towers: dict[str, Tower], tmp_path: Path) -> None:
    """Whatever is left of a run, it ends where the uninterrupted one did; a finished one is left alone."""
    flags = "--stage1.steps 4 --stage2.steps 4 --stage1.lr 0.01 --stage2.lr 0.01 --method lora --peft.rank 2"
    whole = train(towers["rope"], "whole", flags)
    wanted, log = weights(whole), rows(whole)
    for name, gone in {
        "in the last checkpoint of stage 1": (
            "projector.safetensors", "stage-2", "stage-1/checkpoint-4/trainer_state.json",
        ),
        "between the stages": ("stage-2",),
        "in stage 2": ("stage-2/checkpoint-4",),
    }.items():  # fmt: skip
        left = tmp_path / name.replace(" ", "-")
        shutil.copytree(whole, left)
        for file in ("config.json", "model.safetensors", *gone):
            shutil.rmtree(left / file) if (left / file).is_dir() else (left / file).unlink()
        train(towers["rope"], left.name, f"{flags} --resume auto")
        now = weights(left)
        assert [k for k, value in wanted.items() if not torch.allclose(now[k], value, rtol=0, atol=1e-5)] == [], name
        assert rows(left)[-1] == pytest.approx(log[-1], abs=1e-5)
        assert [(row["stage"], row["step"]) for row in rows(left)] == [(row["stage"], row["step"]) for row in log]
    before = (whole / "model.safetensors").stat().st_mtime_ns
    train(towers["rope"], "whole", f"{flags} --resume true")
    assert (whole / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_is_not_overwritten_and_not_changed(
    train: Callable[..., Path], towers: dict[str, Tower], capsys: pytest.CaptureFixture[str]
) -> None:
    out = train(towers["plain"], "out", "--stage1.steps 1 --stage2.steps 0")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    train(towers["plain"], "out", "--stage1.steps 1 --stage2.steps 0", code=2)
    assert "a run is there already; add --resume to continue it" in capsys.readouterr().err
    train(towers["plain"], "out", "--stage1.steps 3 --stage2.steps 0 --resume auto", code=2)
    assert "this run has stage1.steps 1, not 3; leave --stage1.steps out to go on" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_frozen_tower_sees_as_it_will_in_use(
    train: Callable[..., Path], towers: dict[str, Tower], conversations: Path
) -> None:
    """Trainer puts the whole VLM into training mode at each step, where DINOv3 moves the positions of its patches: one
    conversation, learned at a rate of 0, had another loss every time."""
    conversations.write_text(json.dumps(json.loads(conversations.read_text())[:1]))
    out = train(towers["rope"], "out", "--stage1.steps 3 --stage1.lr 0 --stage2.steps 0 --stage1.batch-size 1")
    losses = [row["loss"] for row in rows(out)]
    assert len(losses) == 3 and len(set(losses)) == 1


def test_between_the_stages_nothing_is_rounded(
    train: Callable[..., Path], towers: dict[str, Tower], language_model: Path, tmp_path: Path
) -> None:
    """Stage 1 leaves a projector in fp32; a resumed run read it into the bf16 one that the VLM starts with."""
    AutoModelForCausalLM.from_pretrained(language_model).bfloat16().save_pretrained(language_model)
    flags = "--stage1.steps 2 --stage2.steps 2 --stage1.lr 0.01 --stage2.lr 0.01 --compute.precision bf16"
    whole = train(towers["plain"], "whole", flags)
    left = tmp_path / "left"
    shutil.copytree(whole, left)
    shutil.rmtree(left / "stage-2")
    for file in ("config.json", "model.safetensors"):
        (left / file).unlink()
    train(towers["plain"], "left", f"{flags} --resume auto")
    one, other = (load_tensors(run / "stage-2/checkpoint-2/model.safetensors") for run in (whole, left))
    assert {value.dtype for value in one.values()} == {torch.float32}
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def test_an_adapter_in_a_tower_with_registers(
    train: Callable[..., Path], towers: dict[str, Tower], language_model: Path
) -> None:
    """It is put in as a fused tower of one, which was refused when stage 1 was done; the adapter is merged."""
    out = train(towers["reg4"], "out", "--stage1.steps 1 --stage2.steps 2 --method lora --peft.rank 2 --stage2.lr 0.01")
    start, now = build_vlm(towers["reg4"], language_model)[0].state_dict(), weights(out)
    assert now.keys() == start.keys()
    moved = {name for name, value in now.items() if "vision_tower" in name and not torch.equal(value, start[name])}
    assert moved and all(".members.0." in name and name.endswith("weight") for name in moved)


def test_stages_with_conversations_of_their_own(
    train: Callable[..., Path], towers: dict[str, Tower], conversations: Path, language_model: Path, tmp_path: Path,
    new_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """--data is needed by a stage without. A run that its launcher has started again goes on without being told."""
    new_process()
    out = tmp_path / "out"
    words = f"adapt {towers['plain'].name} --task vlm --language-model {language_model} --output {out}".split()
    flags = small(f"--stage1.steps 1 --stage2.steps 0 --stage1.data {conversations}")
    assert main([*words, *flags]) == 0
    (out / "config.json").unlink()
    new_process()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main([*words, *flags]) == 0 and (out / "config.json").is_file()


def test_other_towers_projectors_and_an_existing_vlm(
    train: Callable[..., Path],
    towers: dict[str, Tower],
    conversations: Path,
    tmp_path: Path,
    new_process: Callable[[], None],
) -> None:
    """Registers come as patches; a fused tower behind a resampler; then its language model gets another tower."""
    few = "--stage1.steps 1 --stage2.steps 1"
    out = train(towers["reg4"], "reg4", few)
    assert AutoModelForImageTextToText.from_pretrained(out).config.image_seq_length == 16
    fused = fuse_towers([towers["plain"], towers["clip"]], output=tmp_path / "fused")
    out = train(fused, "few", f"{few} --projector.kind resampler --projector.tokens 3 --projector.heads 2")
    vlm = AutoModelForImageTextToText.from_pretrained(out)
    assert (type(vlm).__name__, vlm.config.image_seq_length) == ("ProjectedLlavaForConditionalGeneration", 3)
    again = load_tower(tmp_path / "fused").model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in tower_of(vlm).state_dict().items())
    new_process()
    words = f"adapt {towers['rope'].name} --task vlm --data {conversations} --vlm {out} --output {tmp_path / 'third'}"
    assert main([*words.split(), *small(few)]) == 0
    third = AutoModelForImageTextToText.from_pretrained(tmp_path / "third")
    assert (type(third).__name__, third.config.image_seq_length) == ("LlavaForConditionalGeneration", 16)
    new_process()  # registers, given to a VLM that is there: no image tokens either
    words = f"adapt {towers['reg4'].name} --task vlm --data {conversations} --vlm {out} --output {tmp_path / 'fourth'}"
    assert main([*words.split(), *small(few)]) == 0
    fourth = AutoModelForImageTextToText.from_pretrained(tmp_path / "fourth")
    assert (fourth.config.vision_config.model_type, fourth.config.image_seq_length) == ("dino_tower_fused", 16)


def test_a_tokenizer_without_the_image_token_is_refused(
    towers: dict[str, Tower], llama: Any, tokenizer: Any, plain_tokenizer: Any
) -> None:
    """It would read the picture's place as an unknown word."""
    vlm, processor = build_vlm(towers["plain"], llama, tokenizer)
    processor.tokenizer = plain_tokenizer
    with pytest.raises(ConfigError, match=r"stand in place of token 5 \(<image>\), and the tokenizer does not know it"):
        words_of(vlm, processor, 64)


def test_a_loss_that_is_no_number_ends_the_run(
    train: Callable[..., Path], towers: dict[str, Tower], capsys: pytest.CaptureFixture[str]
) -> None:
    out = train(towers["plain"], "out", "--stage1.steps 6 --stage2.steps 0 --stage1.lr 1e30", code=2)
    assert "stage 1: the loss is nan at step" in capsys.readouterr().err
    assert not (out / "config.json").exists()
