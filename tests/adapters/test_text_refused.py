"""What text alignment cannot use: one line that names the value and the way out, exit code 2, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers as hf
from PIL import Image

from dino_tower.adapters.text.words import word_tokenizer
from dino_tower.cli import main
from dino_tower.images import processor_for

WELL = "--data scenes --source.max-samples 12 --batch-size 4 --steps 2 --text.width 16 --text.depth 1 --compute.cpu"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without captions, lists with some, and directories that are no text encoders."""
    root = tmp_path_factory.mktemp("place")
    (root / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 0, 0)).save(root / f"photos/{number}.png")
    (root / "named.csv").write_text("image,caption\n" + "".join(f"photos/{n}.png,picture {n}\n" for n in range(4)))
    (root / "empty.csv").write_text("image,caption\n" + "".join(f"photos/{n}.png,\n" for n in range(4)))
    bert = hf.BertModel(hf.BertConfig(**SMALL, vocab_size=500))
    bert.save_pretrained(root / "wordless")
    bert.save_pretrained(root / "few-words")
    word_tokenizer(["a b"], 10, 8).save_pretrained(root / "few-words")
    bart = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 20}
    ids = {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    hf.BartModel(hf.BartConfig(**bart, **heads, **ids)).save_pretrained(root / "bart")
    word_tokenizer(["a b"], 18, 8).save_pretrained(root / "bart")
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    hf.ViTModel(hf.ViTConfig(**vision), add_pooling_layer=False).save_pretrained(root / "vision")
    processor_for(32, 16).save_pretrained(root / "vision")
    word_tokenizer(["a b"], 18, 8).save_pretrained(root / "vision")
    (root / "taken").mkdir()
    (root / "taken/thesis.txt").write_text("mine")
    return root


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line."""
    capsys.readouterr()
    assert main(["adapt", *words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dino-tower: ")]
    assert len(said) == 1
    return said[0]


# name -> the tower, or none for builtin:scenes; words that replace the good ones; what the line says
CASES: dict[str, tuple[str | None, str, str]] = {
    "no tower": ("", "", "TOWER is missing"),
    "no such tower": ("random:vits17", "", "did you mean random:vits1"),
    "a tower of timm": ("random:timm:vit_tiny_patch16_224", "", "dino-tower convert"),
    "unknown setting": (None, "--loss.nam clip", "did you mean '--loss.name'"),
    "unknown loss": (None, "--loss.name clipp", "did you mean 'clip'"),
    "size": (None, "--size 50", "not a multiple of the patch size 8"),
    "no captions at all": (None, "--data {place}/photos", "--source.caption"),
    "empty captions": (None, "--data {place}/empty.csv", "none of 4 pictures has a caption"),
    "caption column": (None, "--data {place}/named.csv --source.caption txet", "no column 'txet'"),
    "no encoder there": (None, "--text.encoder {place}/gone", "no text encoder of transformers"),
    "encoder without words": (None, "--text.encoder {place}/wordless", "text.encoder"),
    "another's words": (None, "--text.encoder {place}/few-words", "knows 4 words, the encoder 500"),
    "encoder and decoder": (None, "--text.encoder {place}/bart", "has a decoder beside"),
    "encoder of pictures": (None, "--text.encoder {place}/vision", "no text encoder"),
    "frozen noise": (None, "--text.frozen", "--text.encoder DIR"),
    "no pooler": (None, "--text.pooling pooler", "choices: auto, first, last, mean"),
    "width and heads": (None, "--text.heads 3", "does not divide into text.heads 3"),
    "too large a batch": (None, "--batch-size 13", "12 pictures are fewer"),
    "a batch of one": (None, "--batch-size 1", "needs others to be told from"),
    "no steps": (None, "--steps 0", "steps is 0; it must be above 0"),
    "warm-up": (None, "--optim.warmup 10", "a share of the steps"),
    "weights": (None, "--source.weights 1", "leave them out"),
    "resume of nothing": (None, "--resume true", "there is no run"),
    "diverged": (None, "--optim.lr 1e30 --optim.clip 0 --steps 4", "lower --optim.lr"),
}
WRITES = ("diverged",)  # a run that has begun leaves its log


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], new_process: Callable[[], None]
) -> None:
    new_process()
    tower, given, expected = CASES[name]
    flags = given.replace("{place}", str(place)).split()
    words = WELL.split()
    for flag in (word for word in flags if word in words and word.startswith("--")):
        at = words.index(flag)
        del words[at : at + 2]
    towers = ["builtin:scenes"] if tower is None else tower.split()
    line = refused([*towers, "--task", "text", *words, *flags, "--output", str(tmp_path / "run")], capsys)
    assert expected in line
    assert name in WRITES or not (tmp_path / "run").exists()


def test_what_is_there_is_not_overwritten(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], new_process: Callable[[], None]
) -> None:
    new_process()
    well = ["builtin:scenes", "--task", "text", *WELL.split(), "--checkpoint-every", "1"]
    assert "not a run" in refused([*well, "--output", str(place / "taken")], capsys)
    assert [path.name for path in (place / "taken").iterdir()] == ["thesis.txt"]
    run = tmp_path / "run"
    assert main(["adapt", *well, "--output", str(run)]) == 0
    assert "add --resume" in refused([*well, "--output", str(run)], capsys)
    again = [*well, "--resume", "true", "--output", str(run)]
    assert "this run has optim.lr 0.001, not 0.5" in refused([*again, "--optim.lr", "0.5"], capsys)
    # as if it had been stopped after its first step
    (run / "config.json").unlink()
    shutil.rmtree(run / "checkpoints/step-2")
    state = run / "checkpoints/step-1/trained.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    assert "trained.safetensors: damaged" in refused(again, capsys)


def test_a_run_does_not_go_on_with_another_tower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], new_process: Callable[[], None]
) -> None:
    """The frozen tower is not in the checkpoint: one that changed in the meantime has to be noticed."""
    from dino_tower import load_tower

    new_process()
    for name, source in (("tower", "builtin:scenes"), ("other", "random:builtin:scenes")):
        found = load_tower(source)
        found.model.save_pretrained(tmp_path / name)
        found.processor.save_pretrained(tmp_path / name)
    words = [str(tmp_path / "tower"), "--task", "text", *WELL.split(), "--checkpoint-every", "1"]
    run = tmp_path / "run"
    assert main(["adapt", *words, "--output", str(run)]) == 0
    (run / "config.json").unlink()
    shutil.rmtree(tmp_path / "tower")
    shutil.move(tmp_path / "other", tmp_path / "tower")
    assert "written with tower" in refused([*words, "--resume", "true", "--output", str(run)], capsys)
