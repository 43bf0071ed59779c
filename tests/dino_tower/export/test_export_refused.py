"""Whatever is wrong with what export is given: one line, exit code 2, nothing overwritten, no half OUT."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dino_tower.checkpoint import load_tensors, save_tensors, write_digests
from dino_tower.cli import main

Refused = Callable[[list[str], str], None]


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


@pytest.mark.parametrize("case", RUNS)
def test_a_run_that_cannot_be_exported(
    make_run: Callable[[str], Path], place: Path, refused: Refused, case: str
) -> None:
    shutil.copytree(make_run("vits8"), "run")
    spoil, says = RUNS[case]
    spoil(Path("run"))
    refused(["export", "run", "out"], says)


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
    make_run: Callable[[str], Path], place: Path, refused: Refused, arch: str, words: list[str],
    says: str,
) -> None:  # fmt: skip
    shutil.copytree(make_run(arch), "run")
    Path("taken").mkdir()
    Path("taken", "mine.txt").write_text("keep me")
    Path("file.txt").write_text("keep me")
    Path("dangling").symlink_to("nowhere")
    refused(["export", "run", *words], says)


@pytest.mark.parametrize(
    ("format", "bytes_"), [("native", 100_000), ("timm", 100_000), ("dino", 100_000), ("vit", 2_000)]
)
def test_a_full_disk(
    make_run: Callable[[str], Path],
    place: Path,
    contents: Callable[[Path], dict[str, str]],
    capfd: pytest.CaptureFixture[str],
    format: str,
    bytes_: int,
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
