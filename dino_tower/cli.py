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
    "pretrain": ("dino_tower.pretrain.command:main", "train a vision tower on your own images"),
    "adapt": ("dino_tower.adapters.command:main", "adapt a tower to a task: PEFT, heads, text"),
    "show": ("dino_tower.cli:show", "draw a run, or what a tower sees in your pictures, as one HTML page"),
    "export": ("dino_tower.export.command:export", "write a run's tower for transformers, timm, ONNX, ..."),
    "convert": ("dino_tower.export.command:convert", "write weights in another library's layout"),
    "eval": ("dino_tower.eval.command:evaluate", "benchmark towers side by side on dense tasks"),
    "report": ("dino_tower.eval.command:report", "draw one or several benchmarks as one HTML page"),
    "compare-objectives": ("dino_tower.compare.command:main", "train with several objectives alike, and compare them"),
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
    """`dino-tower show RUN [--output FILE]`: write the run's page and print its path.

    `dino-tower show TOWER IMAGE ... [--output DIR] [--size N|native]`: what a tower sees in pictures.
    """
    parser = OneLineParser(
        prog="dino-tower show",
        description="Draw a run as one self-contained HTML page, or what a tower sees in your pictures.",
    )
    parser.add_argument("tower", metavar="RUN|TOWER", help="the directory that pretrain wrote, or any tower")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="*", default=[], help="pictures or folders to show to the tower"
    )
    parser.add_argument(
        "--output", metavar="PATH", help="of a run: the page (RUN/report.html); of pictures: a directory (show/TOWER)"
    )
    parser.add_argument(
        "--size", metavar="N|native", help="of pictures: pixels of the longer side as the tower sees it"
    )
    options = parser.parse_intermixed_args(argv)
    if options.images:
        from dino_tower.explorer import explore, parse_size, summary

        print(summary(explore(options.tower, options.images, options.output, parse_size(options.size))))
        return
    if options.size is not None:
        raise ConfigError("show: --size is for pictures; name them: dino-tower show TOWER IMAGE ... --size N")
    given = Path(options.tower)
    if (given / "config.json").is_file() or (":" in options.tower and not given.exists()):
        raise ConfigError(f"{given} is a tower, not a run; name pictures too: dino-tower show {given} IMAGE ...")
    from dino_tower.run.page import write_run_page
    from dino_tower.run.spelling import run_and_network

    run, _ = run_and_network(options.tower)  # the page shows both networks: RUN@teacher is RUN
    print(write_run_page(run or options.tower, options.output))


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
