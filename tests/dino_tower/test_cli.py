"""The front door: fast, one line for a mistake, the right exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from dino_tower import cli
from dino_tower.errors import ConfigError

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `python -m MODULE WORDS...` in an empty folder, outside any launcher."""

    def call(*words: str, module: str = "dino_tower", **env: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=tmp_path, env=clean | env, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    return call


def stand_in(monkeypatch: pytest.MonkeyPatch, function: Callable[[list[str]], object]) -> None:
    """Put `function` in the table as the command `trial`."""
    monkeypatch.setattr(cli, "trial", function, raising=False)
    monkeypatch.setitem(cli.COMMANDS, "trial", ("dino_tower.cli:trial", "a stand-in"))


def test_help_lists_every_command_and_what_it_does(run: Run) -> None:
    answer = run("--help")
    assert answer.returncode == 0 and answer.stderr == ""
    for name, (_, line) in cli.COMMANDS.items():
        assert any(row.split() == [name, *line.split()] for row in answer.stdout.splitlines())


def test_help_answers_in_half_a_second(run: Run) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, f"fastest of five: {min(times):.2f} s"


def test_help_and_a_misspelt_command_load_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from dino_tower.cli import main; main(['--help']); main(['pretrian']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_in_the_table_exists(name: str) -> None:
    module, _, function = cli.COMMANDS[name][0].partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no command given; choices: pretrain"),
        (("pretrian",), "no command 'pretrian'; did you mean 'pretrain'?"),
        (("frobnicate",), "no command 'frobnicate'; choices: "),
        (("show",), "the following arguments are required: RUN"),
        (("export", "run"), "the following arguments are required: OUT"),
        (("export", "run", "out", "--weights", "both"), "'both'"),
        (("show", "run", "--outptu", "x"), "--outptu"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Run, words: tuple[str, ...], says: str) -> None:
    answer = run(*words)
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert line.startswith("dino-tower: ") and says in line
    assert "dino-tower: dino-tower" not in line


def test_python_m_pretrain_is_the_command_pretrain(run: Run) -> None:
    direct = run("--print-confg", module="dino_tower.pretrain")
    assert direct.returncode == 2 and len(direct.stderr.splitlines()) == 1
    assert "did you mean '--print" in direct.stderr
    assert direct.stderr == run("pretrain", "--print-confg").stderr


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0), ("7", 0)])
def test_under_a_launcher_only_rank_0_says_it(run: Run, rank: str, lines: int) -> None:
    answer = run("pretrian", RANK=rank, WORLD_SIZE="8", LOCAL_RANK=rank)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == lines


def test_a_message_of_several_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> None:
        raise ConfigError("no such\n   thing")

    stand_in(monkeypatch, fail)
    assert cli.main(["trial"]) == 2
    assert capsys.readouterr().err == "dino-tower: no such thing\n"


def test_ctrl_c_is_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(argv: list[str]) -> None:
        raise KeyboardInterrupt

    stand_in(monkeypatch, interrupt)
    assert cli.main(["trial"]) == 130
    assert capsys.readouterr().err == "dino-tower: interrupted\n"


def test_a_command_gets_its_words_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    stand_in(monkeypatch, lambda argv: seen.append(argv) or 3)
    assert cli.main(["trial", "--a", "b"]) == 3
    stand_in(monkeypatch, seen.append)
    assert cli.main(["trial"]) == 0
    assert seen == [["--a", "b"], []]


def test_our_own_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(argv: list[str]) -> None:
        raise ValueError("not a user's mistake")

    stand_in(monkeypatch, bug)
    with pytest.raises(ValueError, match="not a user's mistake"):
        cli.main(["trial"])
