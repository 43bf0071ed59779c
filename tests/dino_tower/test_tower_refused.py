"""What is said when something is no tower, or no picture for one: one line, and nothing is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file

from dino_tower import load_tower
from dino_tower.errors import ConfigError
from dino_tower.images import processor_for
from dino_tower.tower import Tower

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Dinov2 with its processor."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("towers") / "tiny"
    hf.Dinov2Model(hf.Dinov2Config(**SMALL)).save_pretrained(folder)
    processor_for(32, 8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower(directory: Path) -> Tower:
    return load_tower(directory)


@pytest.fixture
def damaged(directory: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(directory, tmp_path / "tower"))


NO_STAGES = {"out_features": None, "out_indices": None, "stage_names": None}  # they name the layers, too
# what is done to a good directory, and what is said then
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no processor": (lambda d: (d / "preprocessor_config.json").unlink(), "no image processor"),
    "no config": (lambda d: (d / "config.json").unlink(), "neither a config.json .transformers. nor checkpoints"),
    "half a config": (lambda d: (d / "config.json").write_text('{"model_type":'), "cannot be loaded"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "cannot be loaded"),
    "cut weights": (lambda d: _cut(d / "model.safetensors"), "cannot be loaded"),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), "cannot be loaded"),
    "a text model": (lambda d: _edit(d, model_type="bert"), "no tower family 'bert'; .*choices: beit, clip"),
    "no model type": (lambda d: _edit(d, model_type=None), "cannot be loaded"),
    "code of its own": (lambda d: _edit(d, model_type="mine", auto_map={"AutoConfig": "a.B"}), "cannot be loaded"),
    "fewer weights": (lambda d: _keep(d, lambda key: "layer.1.mlp" not in key), "the weights lack encoder.layer.1.mlp"),
    "more layers": (lambda d: _edit(d, num_hidden_layers=1, **NO_STAGES), "no place for the weights encoder.layer.1."),
    "other width": (lambda d: _edit(d, hidden_size=64), "the weights have other shapes than its config.json says"),
}  # fmt: skip


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def _edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def _keep(folder: Path, wanted: Callable[[str], bool]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if wanted(k)}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_directory_is_one_line(damaged: Path, case: str) -> None:
    breaks, message = BROKEN[case]
    breaks(damaged)
    with pytest.raises(ConfigError, match=message) as caught:
        load_tower(damaged)
    assert str(caught.value).startswith(str(damaged)) and "\n" not in str(caught.value)


class Mischief:
    """Leaves a file behind if anyone unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["tower.pth", "pytorch_model.bin", "model.safetensors"])
def test_a_pickle_dressed_as_a_checkpoint_is_not_run(damaged: Path, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"
    (damaged / "model.safetensors").unlink()
    if name == "model.safetensors":
        (damaged / name).write_bytes(pickle.dumps({"weights": Mischief(trace)}))
    else:
        torch.save({"weights": Mischief(trace)}, damaged / name)
    with pytest.raises(ConfigError, match=r"cannot be loaded|can be read safely") as caught:
        load_tower(damaged / name if name == "tower.pth" else damaged)
    assert not trace.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/place", "no tower 'no/such/place': not a directory, a run, a checkpoint file or a Hub id"),
        ("./missing", "no tower './missing'"),
        ("vits16", "no tower 'vits16'.*did you mean random:vits16"),
        ("random:nonsense", "no tower 'random:nonsense'"),
        ("random:vitz16", "no tower 'random:vitz16'.*did you mean random:vit"),
        ("random:", "no tower 'random:'"),
        ("", "no tower ''"),
        ("builtin:nothing", "no built-in tower 'builtin:nothing'"),
        ("nobody/no-such-tower", "not on this machine, and the Hub cannot be reached"),
        ("random:nobody/no-such-tower", "not on this machine, and the Hub cannot be reached"),
    ],
)
def test_names_of_nothing(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_tower(name)


def test_a_file_is_a_tower_only_as_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a tower")
    (tmp_path / "notes.pth").write_text("not a tower")
    with pytest.raises(ConfigError, match=r"a file is a tower only as a checkpoint \(\.pth"):
        load_tower(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"notes.pth"):
        load_tower(tmp_path / "notes.pth")


@pytest.mark.parametrize(
    ("images", "size", "message"),
    [
        (torch.zeros(1, 4, 32, 32), None, r"the shape \(1, 4, 32, 32\); a tower takes \[B, 3, H, W\]"),
        (torch.zeros(3, 32, 32), None, "a tower takes"),
        (torch.zeros(1, 3, 32, 36), None, "32 x 36 pixels are not a multiple of the patch size 8"),
        (torch.zeros(1, 3, 0, 32), None, "0 x 32 pixels are less than one step of 8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), None, "torch.uint8; a tower takes normalised floats"),
        ([], None, "no images given"),
        ([np.zeros((8, 8, 3), dtype=np.uint8)], None, "an image is a ndarray; give PIL images"),
        (["no-such-picture.png"], None, "no-such-picture.png: cannot be read: the file does not exist"),
        ([Image.new("RGB", (8, 8))], "naitve", "size 'naitve': give"),
        ([Image.new("RGB", (8, 8))], (0, 8), "size .0, 8.: give"),
    ],
)
def test_pictures_that_do_not_fit(tower: Tower, images: Any, size: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tower(images, size=size)
