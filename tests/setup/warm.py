"""Run commands of `dino-tower` without waiting for torch each time: imported once, then a fork for each command.

Started by tests that run many commands. Reads a JSON line [words, folder, output file] from stdin, runs
`dino-tower WORDS` in that folder with its output in that file, and answers with the exit code.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

from dino_tower import demo
from dino_tower.cli import main
from dino_tower.export import writing
from dino_tower.pretrain import train
from dino_tower.run import page

IMPORTED = (demo, writing, page, train)  # what every command would wait for


def run(words: list[str], folder: str, output: str) -> int:
    """In the child: the command as its own process would run it."""
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    try:
        return main(words)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(run(*json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
