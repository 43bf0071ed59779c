"""What README and docs show is run: every fenced bash and python block, in order, each page in a folder of its own.

An HTML comment above a block, `<!-- test: PART; PART -->`, says what is changed to make it short:

    short              pretrain commands of the block get the flags of SHORT
    with FLAGS         the flags are added to each pretrain, demo or eval command of the block
    A is B             the word A stands for B here: the reader's folder for one of ours, a large number for a small one
    settings only      pretrain commands resolve their settings, launchers' options are parsed: what needs GPUs or SLURM
    setup: COMMAND     run this first: what the page takes for granted
    file NAME          the block is the content of this file (yaml: a preset, whose keys are checked)
    not run: REASON    only for what installs the project
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pages_of_docs import FENCE, OURS, Block, blocks, commands, shorten
from PIL import Image

from dino_tower import cli
from dino_tower.adapters.settings import Config as AdaptConfig
from dino_tower.adapters.text.settings import Config as TextConfig
from dino_tower.adapters.vlm_settings import Config as VlmConfig
from dino_tower.compare.settings import parser as parser_of_compare
from dino_tower.config import field_types, from_tree
from dino_tower.eval.command import parser_of_eval
from dino_tower.pretrain.config import preset_names
from dino_tower.pretrain.settings import Config

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
RUN, SHOWN = ("bash", "python", "yaml"), ("text",)
NEVER_RUN = ("pip install", "git clone")
LAUNCHER = re.compile(r"\b(?P<name>accelerate launch|torchrun) (?P<options>.*?)-m dino_tower")
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
OTHER_FLAGS = {  # that docs speak of and that are not settings of a run
    "--help", "--weights", "--output", "--scenes", "--steps", "--max-restarts", "--num_processes", "--machine_rank",
    "--main_process_ip", "--section.key", "--format", "--heads", "--license", "--note", "--private", "--push-to-hub",
    "--pretrain.KEY", "--for.OBJECTIVE.KEY", "--eval.FLAG", "--source.KEY", "--signals-to-handle", "--shutdown-timeout",
}  # fmt: skip


@pytest.fixture(scope="module")
def warm() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported torch and runs our commands: see setup/warm.py."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "setup" / "warm.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | QUIET,
    ) as process:  # fmt: skip
        yield process
        process.stdin.close()


def run_command(command: str, folder: Path, warm: subprocess.Popen[str]) -> None:
    """A simple command of ours by way of the warm process, anything else by the shell; fail if it fails."""
    words = shlex.split(command)
    if words[0] != "dino-tower" or re.search(r"[|&;<>$`]", command):
        shell(command, folder)
        return
    output = folder / "printed.txt"
    output.unlink(missing_ok=True)
    warm.stdin.write(json.dumps([words[1:], str(folder), str(output)]) + "\n")
    warm.stdin.flush()
    code = warm.stdout.readline().strip()
    assert code == "0", f"$ {command}\nexit code {code}\n{output.read_text(encoding='utf-8')[-4000:]}"


def shell(command: str, folder: Path) -> None:
    """Run as a reader would, with our environment's programs first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=os.environ | QUIET | {"PATH": path}, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"$ {command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def check_settings(text: str) -> None:
    """Syntax of the block, options of the launcher, settings of the run; nothing is started."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    ours = [(line, match) for line in commands(text) if (match := OURS.search(line))]
    assert ours, "no command of ours in this block: settings only means nothing here"
    for line, match in ours:
        if launcher := LAUNCHER.search(line):
            parse_launcher(launcher["name"], shlex.split(launcher["options"]))
        command = match["command"] or match["module"]
        assert command == "pretrain", f"settings only is for pretrain: {line}"
        words = [word for word in shlex.split(match["words"]) if word != "--print-config"]
        assert cli.main(["pretrain", *words, "--print-config"]) == 0, line


def parse_launcher(name: str, options: list[str]) -> None:
    """Fail for an option that the launcher does not have."""
    if name == "torchrun":
        from torch.distributed.run import get_args_parser

        parser = get_args_parser()
    else:
        from accelerate.commands.launch import launch_command_parser

        parser = launch_command_parser()
    _, unknown = parser.parse_known_args([*options, "script.py"])
    assert not unknown, f"{name} has no {unknown}"


def run_bash(block: Block, folder: Path, warm: subprocess.Popen[str]) -> None:
    if block.not_run:
        assert all(line.startswith(NEVER_RUN) for line in commands(block.text)), block.text
    elif block.settings_only:
        check_settings(block.text)
    else:
        for command in commands(block.text):
            if command.startswith("make "):
                shell(f"make -n {command.removeprefix('make ')}", ROOT)  # the target is there; running it is CI's work
            else:
                run_command(shorten(command, block.adds), folder, warm)


def run_yaml(block: Block, folder: Path) -> None:
    assert block.file, "say which file this is: <!-- test: file NAME -->"
    from_tree(Config(), yaml.safe_load(block.text), block.file)
    (folder / block.file).write_text(block.text, encoding="utf-8")


def set_the_scene(folder: Path) -> None:
    """What the pages take for granted: photos/ with class folders, a list, tar shards, two pictures, a text file."""
    rng = np.random.default_rng(0)
    rows = ["path,species"]
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "birds-000000.tar", "w") as tar:
        for i in range(24):
            species = ("heron", "robin", "wren")[i % 3]
            path = folder / "photos" / species / f"{i:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC).save(path)
            rows.append(f"photos/{species}/{path.name},{species}")
            tar.add(path, f"{i:06d}.jpg")
    (folder / "birds.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "notes.txt").write_text("not a picture\n", encoding="utf-8")
    for name in ("bird.jpg", "other.jpg"):
        (folder / name).write_bytes((folder / "photos" / "wren" / "02.jpg").read_bytes())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_block_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: subprocess.Popen[str]
) -> None:
    set_the_scene(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{block.line}"
        assert block.kind in RUN + SHOWN, f"{where}: a block of kind {block.kind!r} is neither run nor marked as text"
        if block.setup:
            run_command(block.setup, tmp_path, warm)
        if block.kind == "bash":
            run_bash(block, tmp_path, warm)
        elif block.kind == "yaml":
            run_yaml(block, tmp_path)
        elif block.kind == "python":
            exec(compile(block.text, where, "exec"), names)  # a page's snippets go on from one another


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_flag_and_link_exists(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))

    def keys(schema: type, prefix: str = "--") -> set[str]:
        found = set()
        for name, kind in field_types(schema).items():
            found |= keys(kind, f"{prefix}{name}.") if hasattr(kind, "__dataclass_fields__") else {prefix + name}
        return found

    flags = {flag for code in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"--[a-z][\w.-]*\w", code)}
    ours = keys(Config) | keys(AdaptConfig) | keys(VlmConfig) | keys(TextConfig)
    evals = set(parser_of_eval()._option_string_actions)
    theirs = evals | set(parser_of_compare()._option_string_actions) | {f"--eval.{flag[2:]}" for flag in evals}
    assert {one.replace("_", "-") for one in flags - OTHER_FLAGS - theirs} - {
        key.replace("_", "-") for key in ours
    } == set()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_page_on_pretraining_names_every_preset_and_no_other() -> None:
    table = re.findall(
        r"^\| `(\w+)` \|[^\n]*\|[^\n]*\|[^\n]*\|$", (ROOT / "docs" / "pretrain.md").read_text("utf-8"), re.M
    )
    kinds = ("dino", "ibot", "dinov2", "dinov3", "mae", "ijepa", "clip", "simclr", "supervised", "demo", "builtin")
    assert {name for name in table if name.split("_")[0] in kinds} == set(preset_names())


def test_every_file_of_docs_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in readme] == []


@pytest.mark.parametrize(
    "page",
    ["<!-- test: quickly -->\n```bash\nls\n```", "<!-- test: a is b -->\n```bash\nls\n```"],
)
def test_a_comment_that_does_nothing_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        blocks(page)


def test_shortening_changes_only_what_trains() -> None:
    assert shorten("dino-tower pretrain --a b", ["--steps", "2"]) == "dino-tower pretrain --a b --steps 2"
    assert shorten("torchrun -m dino_tower.pretrain", ["--steps", "2"]) == "torchrun -m dino_tower.pretrain --steps 2"
    assert shorten("dino-tower demo --steps 300 --x", ["--steps", "2"]) == "dino-tower demo --steps 2 --x"
    assert shorten("dino-tower show runs/a", ["--steps", "2"]) == "dino-tower show runs/a"
    (block,) = blocks("<!-- test: 200 is 4; ~/birds is photos -->\n```bash\nx --data ~/birds --steps 200 2000\n```")
    assert block.text == "x --data photos --steps 4 2000\n"


def test_what_cannot_run_is_still_checked() -> None:
    with pytest.raises(AssertionError):
        check_settings("accelerate launch --no_such_option 8 -m dino_tower.pretrain --data a --output b")
    with pytest.raises(AssertionError):
        check_settings("torchrun -m dino_tower.pretrain --data a --output b --optim.base-lrr 1")
    with pytest.raises(subprocess.CalledProcessError):
        check_settings("if dino-tower pretrain --data a --output b")
