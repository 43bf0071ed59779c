"""What cannot be used is one line that names it and says what to do, exit code 2, and nothing is written.

`pytest -s tests/adapters/test_adapt_refused.py` prints them as a table. What PEFT methods refuse is, at greater length,
in tests/dino_tower/test_peft.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_tower.cli import main

SHORT = {"--workers": "0", "--compute.cpu": "true", "--monitor.tracker": "none", "--steps": "2", "--batch-size": "4"}

WORDS = [
    ("no task", "TOWER --data scenes", "--task is missing; choices: classify, segment, depth"),
    ("an unknown task", "TOWER --task segmnt --data scenes", "no task 'segmnt'; did you mean 'segment'?"),
    ("no tower", "--task segment --data scenes", "TOWER is missing"),
    ("no data", "TOWER --task segment", "--data SOURCE is missing"),
    ("an unknown setting", "TOWER --task segment --data scenes --peft.rnk 2", "did you mean '--peft.rank'?"),
    ("an unknown method", "TOWER --task segment --data scenes --method lorra", "did you mean 'lora'?"),
    ("an unknown layer", "TOWER --task segment --data scenes --peft.modules query", "to adapt 'query'"),
    ("a rank that ia3 has not", "TOWER --task segment --data scenes --method ia3 --peft.rank 2", "method ia3 has none"),
    ("a rank without adapter", "TOWER --task segment --data scenes --method full --peft.rank 2", "has no adapter"),
    ("merging nothing", "TOWER --task segment --data scenes --method none --merge", "there is nothing to merge"),
    ("an unknown head", "TOWER --task segment --data scenes --head.kind unet", "no choice 'unet'"),
    ("a head for pixels", "TOWER --task classify --data scenes --head.kind conv", "task classify takes linear"),
    ("a head of nothing", "TOWER --task segment --data scenes --head.channels 2", "a head needs four or more"),
    ("a size between patches", "TOWER --task segment --data scenes --size 36", "not a multiple of the patch of 8"),
    ("a tower that is not there", "nowhere --task segment --data scenes", "no tower 'nowhere'"),
    ("data that is not there", "TOWER --task segment --data nowhere", "needs a folder with images/, masks/"),
    ("a share above one", "TOWER --task segment --data scenes --optim.warmup 2", "must lie between 0 and 1"),
    ("scales upside down", "TOWER --task segment --data scenes --views.scale 0.9 0.2", "0 < low <= high <= 1"),
    ("a batch larger than the data", "TOWER --task segment --data DATA --batch-size 64", "fewer than one global batch"),
    ("depth upside down", "TOWER --task depth --data DEPTHS --target.low 3 --target.high 2", "need 0 <= low < high"),
    ("labels for depth", "TOWER --task depth --data scenes", "task depth needs a folder with rgb/ and depth/"),
    ("masks for depth", "TOWER --task depth --data DATA", "it has no folder depth/"),
    ("two sources of masks", "TOWER --task segment --data DATA --data scenes", "takes one --data, not 2"),
    ("pictures without labels", "TOWER --task classify --data DATA/images", "needs labels of two classes or more"),
    ("a column without classes", "TOWER --task segment --data DATA --target.column mask", "--target.classes FILE"),
    ("half of masks:", "TOWER --task segment --data masks:DATA/images", "write masks:IMAGES,MASKS,CLASSES"),
    ("fp16 on a CPU", "TOWER --task segment --data scenes --compute.precision fp16", "needs a GPU"),
    ("resuming nothing", "TOWER --task segment --data scenes --resume", "there is no run in"),
    ("LoRA on a ResNet", "random:resnet8 --task segment --data scenes", "a resnet has none that are known"),
    ("pyramid on stages", "random:resnet8 --data scenes --method none --task segment --head.kind pyramid", "take conv"),
]  # fmt: skip


def answer(words: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command is refused."""
    capsys.readouterr()
    short = [word for flag, value in SHORT.items() if flag not in words for word in (flag, value)]
    assert main(["adapt", *words, *short, "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dino-tower: ") and len(line) < 420
    print(f"| `{' '.join(words)}` | {line} |")
    return line


@pytest.mark.parametrize(("case", "words", "says"), WORDS, ids=[row[0] for row in WORDS])
def test_words(
    case: str, words: str, says: str, tmp_path: Path, tower: Callable[..., Path], masked: Path, depths: Path,
    capsys: pytest.CaptureFixture[str], new_process: Callable[[], None],
) -> None:  # fmt: skip
    new_process()
    for name, place in (("TOWER", tower()), ("DEPTHS", depths), ("DATA", masked)):
        words = words.replace(name, str(place))
    assert says in answer(words.split(), tmp_path / "out", capsys)
    assert not (tmp_path / "out").exists()


def _replace(path: Path, image: Image.Image) -> None:
    image.save(path)


DATA = [
    ("a mask of another size", lambda d: [_replace(p, Image.new("L", (9, 9))) for p in masks(d)], "its label is 9 x 9"),
    ("a class id out of range", lambda d: [_replace(p, Image.new("L", (40, 32), 2)) for p in masks(d)], "class id 2"),
    ("a mask in colours", lambda d: [_replace(p, Image.new("RGB", (40, 32))) for p in masks(d)], "in 3 channels"),
    ("a broken mask", lambda d: [p.write_bytes(b"no picture at all") for p in masks(d)], "cannot be read as a label"),
    ("no masks", lambda d: shutil.rmtree(d / "masks"), "it has no folder masks/ or labels/ or annotations/"),
    ("masks of other pictures", lambda d: [p.rename(p.with_name(f"x{p.name}")) for p in masks(d)], "has a mask of its"),
    ("a picture without mask", lambda d: masks(d)[3].unlink(), "1 of 12 pictures in"),
    ("no list of classes", lambda d: (d / "classes.txt").unlink(), "classes.txt: cannot be read"),
    ("one class", lambda d: (d / "classes.txt").write_text("ground\n"), "1 classes; masks hold 2 to 254"),
    ("a list that names nothing", lambda d: (d / "masks_train.txt").write_text("99\n"), "'99' has no picture in"),
]


def masks(data: Path) -> list[Path]:
    return sorted((data / "masks").iterdir())


@pytest.mark.parametrize(("case", "damage", "says"), DATA, ids=[row[0] for row in DATA])
def test_data(
    case: str, damage: Callable[[Path], object], says: str, tmp_path: Path, tower: Callable[..., Path], masked: Path,
    capsys: pytest.CaptureFixture[str], new_process: Callable[[], None],
) -> None:  # fmt: skip
    new_process()
    shutil.copytree(masked, tmp_path / "data")
    damage(tmp_path / "data")
    words = [str(tower()), "--task", "segment", "--data", str(tmp_path / "data")]
    assert says in answer(words, tmp_path / "out", capsys)
    assert not (tmp_path / "out").exists()


def test_depth_in_eight_bits(
    tmp_path: Path, tower: Callable[..., Path], depths: Path, capsys: pytest.CaptureFixture[str], new_process
) -> None:
    new_process()
    shutil.copytree(depths, tmp_path / "data")
    for path in (tmp_path / "data/depth").iterdir():
        Image.fromarray(np.full((32, 40), 3, np.uint8)).save(path)
    words = [str(tower()), "--task", "depth", "--data", str(tmp_path / "data")]
    assert "a depth map of 8 bits cannot hold 1000 units a metre; save 16 bits" in answer(
        words, tmp_path / "out", capsys
    )


def test_an_output_that_holds_something(
    adapt: Callable[..., Path], tower: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tower()), "--task", "segment", "--data", "scenes"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    assert "holds something that is not a run" in answer(words, tmp_path / "taken", capsys)
    run = adapt("run")
    before = (run / "log.jsonl").read_bytes()
    assert "a run is there already; add --resume" in answer(words, run, capsys)
    assert "this run has seed 0, not 5" in answer([*words, "--resume", "--seed", "5"], run, capsys)
    shutil.rmtree(run / "checkpoints/step-2")
    (run / "adapted.json").unlink()
    assert (run / "log.jsonl").read_bytes() == before


def test_a_run_whose_tower_has_changed_cannot_go_on(
    adapt: Callable[..., Path], tower: Callable[..., Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tower(), base)
    run = adapt("run", "--checkpoint-every", "1", of=base)
    shutil.rmtree(run / "checkpoints/step-2")
    (run / "adapted.json").unlink()
    shutil.copy(tower(seed=1) / "model.safetensors", base)
    adapt("run", "--checkpoint-every", "1", "--resume", of=base, code=2)


def test_a_run_whose_classes_have_changed_cannot_go_on(
    adapt: Callable[..., Path], tower: Callable[..., Path], masked: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(masked, tmp_path / "data")
    flags = ["--data", str(tmp_path / "data"), "--checkpoint-every", "1"]
    run = adapt("run", *flags)
    shutil.rmtree(run / "checkpoints/step-2")
    (run / "adapted.json").unlink()
    (tmp_path / "data/classes.txt").write_text("ground\nring\ndisc\n")
    adapt("run", *flags, "--resume", code=2)
    assert "learned 2 classes, and the data has 3 now" in capsys.readouterr().err


TOWERS = [
    ("no processor", lambda t: (t / "preprocessor_config.json").unlink(), "no image processor"),
    ("no weights", lambda t: (t / "model.safetensors").unlink(), "cannot be loaded as a tower"),
    ("damaged weights", lambda t: (t / "model.safetensors").write_bytes(b"no weights"), "cannot be loaded as a tower"),
    ("no config", lambda t: (t / "config.json").unlink(), "neither a config.json (transformers) nor checkpoints"),
    ("an adapter without its base", lambda t: (t / "base.json").write_text("{}"), "it has no adapter_config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "damage", "says"), TOWERS, ids=[row[0] for row in TOWERS])
def test_towers(
    case: str, damage: Callable[[Path], object], says: str, tmp_path: Path, tower: Callable[..., Path],
    capsys: pytest.CaptureFixture[str], new_process: Callable[[], None],
) -> None:  # fmt: skip
    shutil.copytree(tower(), tmp_path / "tower")
    damage(tmp_path / "tower")
    for task in ("segment", "ssl"):
        new_process()
        words = [str(tmp_path / "tower"), "--task", task, "--data", "scenes"]
        assert says in answer(words, tmp_path / "out", capsys)
        assert not (tmp_path / "out").exists()


def test_an_adapter_for_another_base(
    adapt: Callable[..., Path], tower: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the tower of a new adaptation."""
    base = tmp_path / "base"
    shutil.copytree(tower(), base)
    run = adapt("run", of=base)
    shutil.copy(tower(seed=1) / "model.safetensors", base)
    for task in ("segment", "ssl"):
        words = [str(run), "--task", task, "--data", "scenes"]
        assert "the weights below it are others" in answer(words, tmp_path / "out", capsys)
        assert not (tmp_path / "out").exists()
