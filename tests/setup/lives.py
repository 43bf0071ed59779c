"""Many short lives of `dino-tower`: torch is imported once, and every run is a fork of this process.

Started by tests that kill runs. Reads JSON lines from stdin and answers each with one:

{"start": [COMMAND, ...], "env": {...}, "output": FILE} -> the process id of a child that does the commands one after
    the other, with its output in FILE, and ends with the exit code of the last
{"poll": PID} -> its exit code (negative: the signal that killed it), or null while it lives

COMMAND: {"words": [...]} for `dino-tower WORDS`, or {"shell": "..."}; with {"code": "..."} (Python, run before),
{"file_size": BYTES} (no file may grow beyond) and {"user": UID} (rights that the child gives up for good).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import traceback
from typing import Any

from accelerate.state import AcceleratorState, GradientState

from dino_tower import tower
from dino_tower.cli import main
from dino_tower.export import writing
from dino_tower.pretrain import train

IMPORTED = (train, tower, writing)  # what every run would wait for


def do(command: dict[str, Any]) -> int:
    """One command in the child."""
    if "user" in command and os.getuid() == 0:
        os.setgid(command["user"])
        os.setuid(command["user"])
    if "file_size" in command:
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["file_size"], command["file_size"]))
    if "shell" in command:
        return os.waitstatus_to_exitcode(os.system(command["shell"]))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    exec(command.get("code", ""), {})
    return main(command["words"])


def live(commands: list[dict[str, Any]], env: dict[str, str], output: str) -> int:
    """The whole of a child's life; its exit code."""
    os.environ.update(env)
    for number in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    code = 0
    try:
        for command in commands:
            code = do(command)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        for thread in threading.enumerate():  # an interpreter that ends waits for a checkpoint that is being written
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def answer(asked: dict[str, Any]) -> int | None:
    """What the server says to one line."""
    if "poll" in asked:
        ended, status = os.waitpid(asked["poll"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None
    child = os.fork()
    if child == 0:
        os._exit(live(asked["start"], asked["env"], asked["output"]))
    return child


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
