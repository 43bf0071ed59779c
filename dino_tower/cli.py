"""The front door: look a command up in a table, import its room only then, turn a user's mistake into one line.

Nothing heavy is imported here: `dino-tower --help` and a misspelt command answer before torch would have loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from dino_tower import __version__
from dino_tower.errors import ConfigError, unknown

# command -> (module:function, what it does). The function takes the words after the command; None or 0 is success.
COMMANDS: dict[str, tuple[str, str]] = {
    "pretrain": ("dino_tower.pretrain.train:main", "train a vision tower on your own images"),
    "show": ("dino_tower.cli:show", "draw a run as one HTML page: curves, alarms, pictures"),
    "export": ("dino_tower.cli:export", "write a run's tower as a transformers directory"),
    "demo": ("dino_tower.cli:demo", "train on built-in pictures and compare with an untrained tower"),
}
INTERRUPTED = 130  # what a shell reports after Ctrl-C
USER_MISTAKE = 2


class OneLineParser(argparse.ArgumentParser):
    """argparse whose complaint is one line: its own prints the usage first and pushes the reason off the screen."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with `message` and where to read more."""
        raise ConfigError(f"{message} (see `{self.prog} --help`)")


def help_text() -> str:
    """What `dino-tower --help` prints: one line for each command."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return (
        f"dino-tower {__version__}: vision towers for multimodal models\n\n"
        f"usage: dino-tower COMMAND ...\n\n{rows}\n\n"
        "`dino-tower COMMAND --help` lists what a command takes. On several GPUs:\n"
        "  accelerate launch -m dino_tower.pretrain --preset NAME --data SOURCE --output DIR"
    )


def find(command: str) -> Callable[[list[str]], Any]:
    """The function behind `command`, its module imported now.

    Raises:
        ConfigError: no such command; the line names the nearest one and all others.
    """
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS, "dino-tower")
    module, _, function = COMMANDS[command][0].partition(":")
    found: Callable[[list[str]], Any] = getattr(import_module(module), function)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 a user's mistake (one line on stderr), 130 Ctrl-C.

    Under a launcher every process makes the same mistake: only the one with RANK 0 says so.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Before torch loads OpenMP. By default its threads spin while they wait for each other; where loader workers or
    # anything else share the cores, that was seen to make a training step six times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not words:
            raise ConfigError(f"no command given; choices: {', '.join(COMMANDS)} (see `dino-tower --help`)")
        if words[0] in ("-h", "--help"):
            print(help_text())
            return 0
        if words[0] in ("-V", "--version"):
            print(f"dino-tower {__version__}")
            return 0
        return int(find(words[0])(words[1:]) or 0)
    except ConfigError as error:
        say_once(str(error), everywhere=error.one_process)
        return USER_MISTAKE
    except KeyboardInterrupt:
        say_once("interrupted")
        return INTERRUPTED


def say_once(message: str, everywhere: bool = False) -> None:
    """Print `dino-tower: message` on stderr as one line, from the first process of a job only or from any."""
    if everywhere or os.environ.get("RANK", "0") == "0":
        line = " ".join(message.removeprefix("dino-tower: ").split())
        print(f"dino-tower: {line}", file=sys.stderr, flush=True)


def show(argv: list[str]) -> None:
    """`dino-tower show RUN [--output FILE]`: write the run's page and print its path."""
    parser = OneLineParser(prog="dino-tower show", description="Draw a run as one self-contained HTML page.")
    parser.add_argument("run", metavar="RUN", help="the directory that pretrain wrote")
    parser.add_argument("--output", metavar="FILE", help="the page to write (default: RUN/report.html)")
    options = parser.parse_args(argv)
    from dino_tower.run_page import write_run_page

    print(write_run_page(options.run, options.output))


def export(argv: list[str]) -> None:
    """`dino-tower export RUN OUT [--weights student|teacher]`: write the tower and print where it went."""
    parser = OneLineParser(prog="dino-tower export", description="Write a run's tower as a transformers directory.")
    parser.add_argument("run", metavar="RUN", help="the directory that pretrain wrote")
    parser.add_argument("out", metavar="OUT", help="the directory to write")
    parser.add_argument("--weights", choices=("student", "teacher"), default="student")
    options = parser.parse_args(argv)
    from dino_tower.export import export_tower

    export_tower(options.run, options.out, weights=options.weights)
    print(options.out)


def demo(argv: list[str]) -> int:
    """`dino-tower demo [--output DIR] [--steps N] [--scenes N]`: train on built-in pictures, compare with floors."""
    parser = OneLineParser(prog="dino-tower demo", description="Train on built-in pictures and compare with floors.")
    parser.add_argument("--output", metavar="DIR", help="the run to write (default: the first free runs/demo, -2, ...)")
    parser.add_argument("--steps", type=int, metavar="N", help="train for N steps only, to try things out")
    parser.add_argument("--scenes", type=int, metavar="N", default=2000, help="test scenes (default: 2000)")
    options = parser.parse_args(argv)
    for name in ("steps", "scenes"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ConfigError(f"demo: --{name} {value}; it must be 1 or more")
    from dino_tower.demo import run_demo

    return run_demo(Path(options.output) if options.output else None, options.steps, options.scenes)
