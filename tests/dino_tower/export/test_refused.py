"""Whatever is wrong with what export and convert are given: one line, exit code 2, nothing overwritten, no half OUT."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dino_tower.checkpoint import load_tensors, save_tensors, write_digests
from dino_tower.checkpoint_files import read_file
from dino_tower.cli import main
from dino_tower.convert import native_to_original
from dino_tower.errors import ConfigError

Weights = dict[str, Tensor]


class Evil:
    """A pickle of it runs a command when it is read the usual way."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch PWNED",)


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "step-1"


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_a_tensor(file: Path) -> None:
    weights = load_tensors(file)
    del weights["layernorm.weight"]
    save_tensors(file, weights)


def flip_a_bit(run: Path) -> None:
    """After the digests were noted: what a disk does in ten years."""
    write_digests(checkpoint(run))
    file = checkpoint(run) / "student" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


# what is done to a run of vits8 before `export run out` -> what the line says
RUNS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no run": (shutil.rmtree, "no run directory 'run'"),
    "no settings": (lambda run: (run / "config.yaml").unlink(), "run: not a run directory (it has no config.yaml)"),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints"), "run@student: the run has no checkpoint yet"),
    "a half-written checkpoint": (lambda run: (checkpoint(run) / "state.json").unlink(), "has no checkpoint yet"),
    "no weights": (lambda run: (checkpoint(run) / "student" / "model.safetensors").unlink(), "model.safetensors"),
    "half the weights": (lambda run: shorten(checkpoint(run) / "student" / "model.safetensors"), "student"),
    "no config": (lambda run: (checkpoint(run) / "student" / "config.json").unlink(), "config.json"),
    "a broken config": (lambda run: shorten(checkpoint(run) / "student" / "config.json"), "config.json"),
    "another class": (
        lambda run: edit(checkpoint(run) / "student" / "config.json", model_type="bert"), "no tower family 'bert'",
    ),
    "a tensor too few": (lambda run: drop_a_tensor(checkpoint(run) / "student" / "model.safetensors"), "layernorm"),
    "a tensor of another shape": (
        lambda run: edit(checkpoint(run) / "student" / "config.json", image_size=64), "have other shapes",
    ),
    "a flipped bit": (flip_a_bit, "model.safetensors: damaged"),
    "no processor": (lambda run: (checkpoint(run) / "student" / "preprocessor_config.json").unlink(), "processor"),
    "a crop that is no multiple of the patch": (
        lambda run: edit(
            checkpoint(run) / "student" / "preprocessor_config.json", crop_size={"height": 50, "width": 50}
        ),
        "its processor cuts 50 x 50 pixels, no multiple of the patch of 8",
    ),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ""
        for p in folder.rglob("*")
    }


def refused(words: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with `says` in it, exit code 2, and a folder in which nothing has changed."""
    before = contents(place)
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dino-tower: ") and says in line and len(line) < 420
    assert contents(place) == before
    print(f"| `{' '.join(words)}` | {line} |")


@pytest.mark.parametrize("case", RUNS)
def test_a_run_that_cannot_be_exported(
    make_run: Callable[[str], Path], place: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    shutil.copytree(make_run("vits8"), "run")
    spoil, says = RUNS[case]
    spoil(Path("run"))
    refused(["export", "run", "out"], says, place, capsys)


@pytest.mark.parametrize(
    ("arch", "words", "says"),
    [
        ("vits8", ["taken"], "taken: exists already; name a new directory"),
        ("vits8", ["file.txt"], "file.txt: exists already"),
        ("vits8", ["dangling"], "dangling: exists already"),
        ("vits8", ["file.txt/deep/out"], "file.txt/deep/out: cannot be written: not a directory"),
        ("vits8", ["out", "--format", "onxx"], "no format 'onxx'; did you mean 'onnx'?"),
        ("vits8", ["out", "--weights", "both"], "'both'"),
        ("vits8", ["out", "--license", "My own"], "licence 'My own': give an identifier of the Hub"),
        ("vits8", ["out", "--push-to-hub", "birds"], "name the owner too: OWNER/NAME"),
        ("vits8", ["out", "--push-to-hub", "some one/birds"], "--push-to-hub 'some one/birds'"),
        ("vits8", ["out", "--private"], "give --push-to-hub OWNER/NAME, too"),
        ("vits8", ["out", "--note", "nothing.md"], "--note nothing.md: cannot be read"),
        ("vits8_reg4", ["out", "--format", "vit"], "no place for the registers of this tower; choices: native, timm"),
        ("vits8_reg4", ["out", "--format", "dino"], "format dino has no place for the registers of this tower"),
        ("vits8_rope", ["out", "--format", "timm"], "no place for a DINOv3ViTModel; choices: native, onnx, heads"),
        ("vits8_siglip", ["out", "--format", "vit"], "no place for a SiglipVisionModel"),
        ("vits8_clip", ["out", "--format", "dinov2"], "no place for a CLIPVisionModel"),
        ("resnet8", ["out", "--format", "dino"], "no place for a ResNetModel"),
    ],
)
def test_an_export_that_cannot_be(
    make_run: Callable[[str], Path], place: Path, capsys: pytest.CaptureFixture[str], arch: str, words: list[str],
    says: str,
) -> None:  # fmt: skip
    shutil.copytree(make_run(arch), "run")
    Path("taken").mkdir()
    Path("taken", "mine.txt").write_text("keep me")
    Path("file.txt").write_text("keep me")
    Path("dangling").symlink_to("nowhere")
    refused(["export", "run", *words], says, place, capsys)


def evil(file: str) -> Callable[[Weights], None]:
    def write(weights: Weights) -> None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": {**weights, "evil": Evil()}}, file)

    return write


def plain_evil(weights: Weights) -> None:
    Path("in.pth").write_bytes(pickle.dumps(Evil()))


def dressed_evil(weights: Weights) -> None:
    Path("in.safetensors").write_bytes(pickle.dumps(Evil()))


def evil_beside_a_config(weights: Weights) -> None:
    evil("in/pytorch_model.bin")(weights)
    Path("in/config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": 64, "num_hidden_layers": 2}))


def text(weights: Weights) -> None:
    Path("in.pth").write_text("this is no checkpoint\n")


def cut(weights: Weights) -> None:
    torch.save(weights, "in.pth")
    shorten(Path("in.pth"))


def saved(**changes: Tensor | None) -> Callable[[Weights], None]:
    """The weights with these in place of their own; None leaves one out. `__` in a name stands for a dot."""

    def write(weights: Weights) -> None:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        torch.save({k: v for k, v in {**weights, **named}.items() if v is not None}, "in.pth")

    return write


def nothing(weights: Weights) -> None:
    """IN is not there."""


def bert(weights: Weights) -> None:
    Path("in").mkdir()
    Path("in/config.json").write_text(json.dumps({"model_type": "bert"}))


def unknown_timm(weights: Weights) -> None:
    Path("in").mkdir()
    save_tensors(Path("in/model.safetensors"), weights)
    Path("in/config.json").write_text(json.dumps({"architecture": "vit_enormous"}))


# how IN is made -> the words after `convert` and what the line says
SOURCES: dict[str, tuple[Callable[[Weights], None], str, str]] = {
    "nothing there": (nothing, "in.pth out --to native", "no checkpoint 'in.pth'"),
    "a pickle that runs a command": (plain_evil, "in.pth out --to native", "not a checkpoint that can be read safely"),
    "the same among weights": (evil("in.pth"), "in.pth out --to native", "nothing was run"),
    "the same as safetensors": (dressed_evil, "in.safetensors out --to native", "cannot be read as safetensors"),
    "the same beside a config": (evil_beside_a_config, "in out --to vit", "it asks for posix.system; nothing was run"),
    "a text": (text, "in.pth out --to native", "in.pth: not a checkpoint: neither"),
    "half a file": (cut, "in.pth out --to native", "in.pth: a damaged checkpoint"),
    "no weights": (lambda w: torch.save({"epoch": 3}, "in.pth"), "in.pth out --to native", "its entries: epoch"),
    "a number": (lambda w: torch.save(3, "in.pth"), "in.pth out --to native", "but one value of type int"),
    "no student": (lambda w: torch.save({"teacher": w}, "in.pth"), "in.pth out --to dino --weights student",
                   "has no student"),
    "a ResNet": (lambda w: torch.save({"conv1.weight": torch.ones(3)}, "in.pth"), "in.pth out --to native",
                 "no blocks"),
    "a name without a place": (saved(blocks__0__attn__bias_table=torch.ones(2)), "in.pth out --to native",
                               "no place for 'blocks.0.attn.bias_table'"),
    "no position table": (saved(pos_embed=None), "in.pth out --to native",
                          "in.pth: the weights lack embeddings.position_embeddings"),
    "an oblong position table": (saved(pos_embed=torch.ones(1, 13, 48)), "in.pth out --to native --heads 3",
                                 "13 rows belongs to no square grid"),
    "oblong patches": (saved(patch_embed__proj__weight=torch.ones(48, 3, 8, 4)), "in.pth out --to native",
                       "patches of 8 x 4 pixels"),
    "heads that nothing tells": (saved(), "in.pth out --to native", "give it with --heads"),
    "heads that do not fit": (saved(), "in.pth out --to native --heads 5", "--heads 5 does not divide the width 48"),
    "an MLP of no whole ratio": (saved(blocks__0__mlp__fc1__weight=torch.ones(100, 48)),
                                 "in.pth out --to native --heads 3", "an MLP of 100 features"),
    "blocks of unlike shapes": (saved(blocks__1__mlp__fc2__weight=torch.ones(48, 100)),
                                "in.pth out --to native --heads 3", "size mismatch for encoder.layer.1.mlp.fc2"),
    "features that are no numbers": (saved(norm__weight=torch.full((48,), float("nan"))),
                                     "in.pth out --to timm --heads 3", "features that are no numbers"),
    "an unknown layout": (saved(), "in.pth out --to tim --heads 3", "no format 'tim'; did you mean 'timm'?"),
    "a layout for runs only": (saved(), "in.pth out --to onnx --heads 3", "--to: no format 'onnx'"),
    "no layout": (saved(), "in.pth out", "--to"),
    "a run": (lambda w: Path("in/checkpoints").mkdir(parents=True), "in out --to native",
              "in: a run; `dino-tower export in OUT"),
    "another class": (bert, "in out --to native", "in: a bert of transformers; only vit, dinov2"),
    "an unknown model of timm": (unknown_timm, "in out --to native", "in: not a vit_enormous of timm"),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_a_source_that_cannot_be_converted(
    draw: Callable[..., torch.nn.Module], place: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    weights = native_to_original(draw("vits8", width=48, heads=3).state_dict())
    make, words, says = SOURCES[case]
    make(weights)
    refused(["convert", *words.split()], says, place, capsys)
    assert not Path("PWNED").exists()


def test_a_source_stays_what_it_was_where_out_is_taken(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.pth").write_bytes(b"whatever")
    refused(["convert", "in.pth", "in.pth", "--to", "native"], "in.pth: exists already", place, capsys)


@pytest.mark.parametrize(
    ("format", "bytes_"), [("native", 100_000), ("timm", 100_000), ("dino", 100_000), ("vit", 2_000)]
)
def test_a_full_disk(
    make_run: Callable[[str], Path], place: Path, capfd: pytest.CaptureFixture[str], format: str, bytes_: int
) -> None:
    """A child whose files may not grow beyond some bytes, as on a disk with no more room."""
    shutil.copytree(make_run("vits8"), "run")
    before = contents(place)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))
        code = 99
        try:
            code = main(["export", "run", "deep/er/out", "--format", format])
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "deep/er/out: cannot be written: " in line and "nothing was kept" in line
    assert contents(place) == before
    print(f"| full disk, `--format {format}` | {line} |")


def test_what_the_original_code_pickled_is_read(place: Path) -> None:
    """The one exception: the command line that DINO's checkpoints hold is a bag of settings without code."""
    torch.save({"teacher": {"norm.weight": torch.ones(3)}, "args": Namespace(arch="vit_small")}, "in.pth")
    held = read_file(Path("in.pth"))
    assert held["args"].arch == "vit_small" and torch.equal(held["teacher"]["norm.weight"], torch.ones(3))


def test_the_allow_list_does_not_stay_behind(place: Path) -> None:
    torch.save(Namespace(a=1), "in.pth")
    read_file(Path("in.pth"))
    with pytest.raises(pickle.UnpicklingError):
        torch.load("in.pth", weights_only=True)
    torch.save(Evil(), "evil.pth")
    with pytest.raises(ConfigError, match=r"it asks for \w+\.system"):
        read_file(Path("evil.pth"))
    assert not Path("PWNED").exists()
