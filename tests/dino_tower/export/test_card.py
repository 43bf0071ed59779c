"""The model card: its facts are the run's, and every snippet in it runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from dino_tower.export.model_card import OBJECTIVES, RECIPE_OF, command_of, curves
from dino_tower.export.writing import export_tower
from dino_tower.pretrain.objectives.settings import OBJECTIVES as TRAINED
from dino_tower.run.log import RunLog, read_run

MakeRun = Callable[[str], Path]
CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def run_snippets(out: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the card's code where a reader would: beside the directory, with a picture; each goes on from the last."""
    monkeypatch.chdir(out.parent)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("bird.jpg")
    card = (out / "README.md").read_text(encoding="utf-8")
    blocks = CODE.findall(card)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{out.name}/README.md block {number}", "exec"), names)
    return re.findall(r"^### (.+)$", card, re.M)


@pytest.mark.parametrize(
    ("arch", "without_code"),
    [
        ("vits8_reg4", {"LLaVA"}),
        ("vits8_rope", set()),
        ("vits8_siglip", {"Segmentation backbone"}),
        ("vits8_clip", {"Segmentation backbone"}),
        ("resnet8", {"LLaVA"}),
    ],
)
def test_the_snippets_of_every_class_run(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, without_code: set[str]
) -> None:
    export_tower(make_run(arch), tmp_path / "tower")
    titles = run_snippets(tmp_path / "tower", monkeypatch)
    card = (tmp_path / "tower" / "README.md").read_text(encoding="utf-8")
    usual = ["transformers", "Pipeline", "LLaVA", "Segmentation backbone", "PEFT", "dino-tower", "Curves"]
    assert titles == [title for title in usual if title != "PEFT" or arch != "resnet8"]
    sections = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##)", card, re.M | re.S))
    assert {title for title in titles[:-1] if "```" not in sections[title]} == without_code


@pytest.mark.parametrize("format", ["native", "vit", "timm", "dino", "heads"])
def test_the_snippets_of_every_format_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    export_tower(trained, tmp_path / "birds-tower", format=format)
    run_snippets(tmp_path / "birds-tower", monkeypatch)
    printed = capsys.readouterr().out
    shown = {"native": "torch.Size([1, 17, 32])", "vit": "torch.Size([1, 17, 32])", "timm": "torch.Size([1, 17, 32])",
             "dino": "torch.Size([1, 17, 32])", "heads": "['centre', 'student', 'teacher']"}  # fmt: skip
    assert shown[format] in printed


def test_the_snippets_of_a_tower_with_words_run(
    pretrain: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--objective clip --clip.vocabulary 300 --clip.read 20 --clip.width 16 --clip.depth 1 --clip.heads 2"
    export_tower(pretrain("run", *words.split(), "--steps", "1"), tmp_path / "out", format="text")
    assert run_snippets(tmp_path / "out", monkeypatch) == ["Zero-shot classification", "dino-tower", "Curves"]
    assert "torch.Size([1, 2])" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "zero-shot-image-classification" and "self-supervised" not in card.data.tags
    assert "pretrained on pictures with captions" in card.text and "with captions |" in card.text


def test_the_card_tells_what_the_run_did(trained: Path, tmp_path: Path) -> None:
    note = "## Measured\n\nNothing yet."
    export_tower(trained, tmp_path / "birds", weights="teacher", note=note, license="cc-by-4.0")
    card = ModelCard.load(tmp_path / "birds" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-feature-extraction"
    text = card.text
    log = read_run(trained)
    accuracy = log.monitor[-1]["knn"]["20"], log.monitor[-1]["random_knn"]["20"]
    for told in (
        "the teacher of the run", "`scenes`", "architecture `vits8`", "2 of 2 steps, global batch 8", note,
        f"dino-tower pretrain {log.starts[0]['command']}", f"| 2 | {log.steps[-1]['loss']:.3f} |",
        f"k = 20: {accuracy[0]:.1%} (untrained {accuracy[1]:.1%})", "- 0.0e+00 at 32 x 32", "multiple of 8 px",
    ):  # fmt: skip
        assert told in text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    assert recipe == {key: log.settings[key] for key in recipe} and recipe["crops"]["global_size"] == 32


def test_a_card_without_a_licence_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    export_tower(make_run("vits8"), tmp_path / "birds")
    card = ModelCard.load(tmp_path / "birds" / "README.md")
    assert card.data.license is None and "None was chosen" in card.text


def test_the_command_is_the_one_that_was_typed(trained: Path) -> None:
    """The first start counts, and the settings that it resolves to are the run's."""
    from dino_tower.pretrain.config import read_config

    log = read_run(trained)
    words = command_of(log).removeprefix("dino-tower pretrain ").split()
    assert words[:2] == ["--preset", "demo"] and words[-2:] == ["--output", "birds"]
    assert read_config(words).steps == 2


def test_a_run_that_did_not_note_its_command_gets_one_of_all_its_settings(trained: Path) -> None:
    from dino_tower.config import to_tree
    from dino_tower.pretrain.config import read_config

    log = read_run(trained)
    silent = RunLog(log.settings, [{"world": 1}])
    words = command_of(silent).replace("\\\n", " ").split()[2:]
    assert to_tree(read_config(words)) == log.settings


def test_the_command_of_several_processes_starts_them() -> None:
    log = RunLog({"preset": "demo"}, [{"world": 4, "command": "--preset demo"}])
    assert command_of(log) == "torchrun --nproc-per-node 4 -m dino_tower.pretrain --preset demo"


def test_curves_have_ten_rows_and_the_last_step() -> None:
    steps = [{"step": s, "loss": 6 - s / 1000, "entropy": 5.0} for s in range(10, 2001, 10)]
    monitor = [{"step": s, "knn": {"5": 0.2, "20": s / 4000}, "random_knn": {"20": 0.1}} for s in (0, 1000, 2000)]
    rows = curves(RunLog({}, steps=steps, monitor=monitor)).splitlines()[2:]
    assert 10 <= len(rows) <= 11
    assert rows[0] == "| 0 |  |  | 0.0% | 10.0% |" and rows[-1] == "| 2000 | 4.000 | 5.000 | 50.0% | 10.0% |"


def test_every_objective_is_named_in_words_with_its_own_part_of_the_recipe() -> None:
    """MAE's and I-JEPA's cards said neither: "objective | mae", nothing of labels, nothing of what was hidden."""
    assert set(OBJECTIVES) == set(TRAINED)
    assert {*RECIPE_OF, "dino"} == set(TRAINED)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "on nothing else"),
        ({"init_from": "facebook/dinov2-small"}, "carries on what `facebook/dinov2-small` was trained on"),
        ({"distil": {"teachers": ["a", "b"]}, "gram": {"tower": "self"}}, "carries on what `a`, `b` was trained on"),
        ({"gram": {"tower": "runs/anchor"}}, "carries on what `runs/anchor` was trained on"),
    ],
)
def test_a_card_names_whose_pictures_stand_behind_the_weights(
    make_run: MakeRun, tmp_path: Path, more: dict[str, object], said: str
) -> None:
    """A run that went on from DINOv2 said on the Hub that it had been trained on one folder and on nothing else."""
    run = tmp_path / "run"
    shutil.copytree(make_run("vits8"), run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(settings | more))
    export_tower(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert said in card and ("on nothing else" in card) == (not more)
