"""Whatever is wrong with the weights that convert is given: one line, exit code 2, no code of theirs run."""

from __future__ import annotations

import json
import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dino_tower.checkpoint import save_tensors
from dino_tower.checkpoint_files import read_file
from dino_tower.convert import native_to_original
from dino_tower.errors import ConfigError

Weights = dict[str, Tensor]
Refused = Callable[[list[str], str], None]


class Evil:
    """A pickle of it runs a command when it is read the usual way."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch PWNED",)


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
    os.truncate("in.pth", Path("in.pth").stat().st_size // 2)


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
    draw: Callable[..., torch.nn.Module], place: Path, refused: Refused, case: str
) -> None:
    weights = native_to_original(draw("vits8", width=48, heads=3).state_dict())
    make, words, says = SOURCES[case]
    make(weights)
    refused(["convert", *words.split()], says)
    assert not Path("PWNED").exists()


def test_a_source_stays_what_it_was_where_out_is_taken(place: Path, refused: Refused) -> None:
    Path("in.pth").write_bytes(b"whatever")
    refused(["convert", "in.pth", "in.pth", "--to", "native"], "in.pth: exists already")


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
