"""Stopping on purpose: SIGTERM, SIGUSR1 (what SLURM sends before it preempts) and Ctrl-C end a run after its step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

STOPPED = 3  # exit code of a run that was asked to stop and can be continued
CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(BaseException):
    """A stop signal came while nothing was going on that is worth finishing.

    Like KeyboardInterrupt no Exception: whoever takes every Exception for a broken picture must not take this for one.
    """


class StopSignals:
    """Remembers the first stop signal; a second Ctrl-C interrupts at once.

    `patient`: a signal waits for the step that is under way. Before a run has steps it is not, and raises Stopped.
    Caught only inside a `with` block, and only in the main thread, where handlers can be set.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.patient = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in CAUGHT}
        return self

    def breakable(self, work: Callable[[], object]) -> None:
        """Do `work`, of which nothing is needed later: a signal breaks it off, or keeps it from being begun."""
        if self.received is not None:
            return
        before, self.patient = self.patient, False
        try:
            work()
        except Stopped:
            pass
        finally:
            self.patient = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, signal.Signals(number).name
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.patient:
            raise Stopped(self.received)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
