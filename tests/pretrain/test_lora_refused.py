"""What self-distillation by an adapter cannot use: one line that names it and says what to do, exit code 2, nothing
written. `pytest -s tests/pretrain/test_lora_refused.py` prints them as a table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTModel

from dino_tower.architectures import build
from dino_tower.cli import main
from dino_tower.images import processor_for

SHORT = {"--data": "scenes", "--workers": "0", "--steps": "2", "--batch-size": "4", "--compute.cpu": "true",
         "--monitor.tracker": "none", "--compute.precision": "no"}  # fmt: skip

ADAPT = [
    ("no tower", "--task ssl", "TOWER is missing: the tower to adapt"),
    ("a word too many", "--task ssl=yes", "no task 'ssl=yes'; did you mean 'ssl'?"),
    ("a tower that is not there", "nowhere --task ssl", "no tower 'nowhere'"),
    ("a tower of timm", "random:timm:vit_tiny_patch16_224 --task ssl", "takes towers of transformers"),
    ("no processor", "BARE --task ssl", "no image processor (preprocessor_config.json)"),
    ("LoRA on a ResNet", "RESNET --task ssl", "a resnet has none that are known"),
    ("an unknown method", "TOWER --task ssl --method lorra", "no method 'lorra'; did you mean 'lora'?"),
    ("a whole tower", "TOWER --task ssl --method full", "--method full: --task ssl trains an adapter"),
    ("nothing to train", "TOWER --task ssl --method none", "--method none: --task ssl trains an adapter"),
    ("an unknown layer", "TOWER --task ssl --peft.modules query", "no layer for lora to adapt 'query'"),
    ("a rank of nothing", "TOWER --task ssl --peft.rank 0", "lora.rank is 0; it must be above 0"),
    ("a rank that is a word", "TOWER --task ssl --peft.rank big", "'big' is not a number"),
    ("a rank where there is none", "TOWER --task ssl --method ia3 --peft.rank 2", "lora.rank: method ia3 has none"),
    ("an alpha of nothing", "TOWER --task ssl --peft.alpha -1", "lora.alpha is -1.0; it must be above 0"),
    ("a dropout", "TOWER --task ssl --peft.dropout 0.1", "--peft.dropout: --task ssl has no such setting"),
    ("a head of another task", "TOWER --task ssl --head.kind conv", "no setting '--head.kind'"),
    ("merging by half", "TOWER --task ssl --merge half", "--merge: 'half' is neither true nor false"),
    ("a size between patches", "TOWER --task ssl --size 36", "crops.global_size 36 is not a multiple of"),
    ("local views between patches", "TOWER --task ssl --crops.local-size 20", "crops.local_size 20 is not a multiple"),
    ("blocks of another size", "TOWER --task ssl --model.depth 3", "model.depth is 3, but --arch tower takes"),
    ("paths that are dropped", "TOWER --task ssl --model.drop-path 0.1", "takes the tower as it is: set it to 0"),
    ("a patch embedding that moves", "TOWER --task ssl --optim.patch-embed-lr 0.2", "leaves the patch embedding"),
    ("other pixels", "TOWER --task ssl --pixels.mean 0 0 0 --pixels.std 1 1 1", "set --pixels.mean 0.485 0.456 0.406"),
    ("measured pixels", "TOWER --task ssl --pixels.measure", "--pixels.measure false"),
    ("masks without a token", "VIT --task ssl --objective ibot", "hides patches, and a vit has no mask token"),
    ("patches alone", "TOWER --task ssl --objective mae", "terms.mae does not go with an adapter"),
    ("no data", "TOWER --task ssl --data nowhere", "nowhere"),
    ("resuming nothing", "TOWER --task ssl --resume", "--resume: there is no run in"),
]  # fmt: skip
PRETRAIN = [
    ("an adapter in a new network", "--lora.method lora", "set --arch tower, or take --preset dino_lora"),
    ("an adapter in nothing", "--preset dino_lora", "--init-from TOWER is missing: the tower to adapt"),
    ("a tower without an adapter", "--arch tower --init-from TOWER", "--arch tower is for an adapter"),
    ("a rank without an adapter", "--lora.rank 4", "lora.rank is given, but there is no adapter"),
    ("a setting that is none", "--preset dino_lora --init-from TOWER --lora.rnk 4", "did you mean '--lora.rank'?"),
]  # fmt: skip


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """TOWER: a small one; BARE: without its processor; RESNET; VIT: of a class that hides no patches."""
    root = tmp_path_factory.mktemp("towers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    models = {
        "TOWER": build("vits8", image_size=32, width=32, depth=2, heads=2),
        "RESNET": build("resnet8", image_size=32, width=8),
        "VIT": ViTModel(ViTConfig(**small, image_size=32, patch_size=8), add_pooling_layer=False),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor_for(32, 8).save_pretrained(root / name)
    shutil.copytree(root / "TOWER", root / "BARE")
    (root / "BARE/preprocessor_config.json").unlink()
    return {path.name: path for path in root.iterdir()}


def refused(command: str, words: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    short = [word for flag, value in SHORT.items() if flag not in words for word in (flag, value)]
    assert main([command, *words, *short, "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dino-tower: ") and len(line) < 1000
    print(f"| `{command} {' '.join(words)}` | {line[:300]} |")
    return line


@pytest.mark.parametrize(
    ("command", "case", "given", "says"),
    [("adapt", *row) for row in ADAPT] + [("pretrain", *row) for row in PRETRAIN],
    ids=[row[0] for row in (*ADAPT, *PRETRAIN)],
)
def test_one_line_and_nothing_written(
    command: str, case: str, given: str, says: str, towers: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], new_process: Callable[[], None],
) -> None:  # fmt: skip
    new_process()
    words = [str(towers.get(word, word)) for word in given.split()]
    before = {path: path.read_bytes() for root in towers.values() for path in root.iterdir()}
    assert says in refused(command, words, tmp_path / "out", capsys)
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for root in towers.values() for path in root.iterdir()} == before


def test_an_output_that_holds_something_stays_as_it_is(
    towers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], new_process: Callable[[], None]
) -> None:
    new_process()
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds something that is not a run" in refused(
        "adapt", [str(towers["TOWER"]), "--task", "ssl"], tmp_path, capsys
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
