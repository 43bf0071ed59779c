"""The progress bar of a training: loss, images a second, the share of time spent waiting for data, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

REFRESH = 1.0  # seconds between drawings of the bar


class Progress:
    """One bar on the main process, and the rates for the log on every process."""

    def __init__(self, steps: int, start: int, images_per_step: int, shown: bool) -> None:
        self.images_per_step = images_per_step
        # without a terminal (a log file, a scheduler) one line a minute instead of one a second
        interval = REFRESH if sys.stderr.isatty() else 60.0
        self.bar = tqdm(
            total=steps, initial=start, disable=not shown, dynamic_ncols=True, unit="step", mininterval=interval,
            bar_format="{percentage:3.0f}% {n_fmt}/{total_fmt} steps{postfix} [{elapsed}, {remaining} left]",
        )  # fmt: skip
        self._reset()

    def _reset(self) -> None:
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in here counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def advance(self) -> None:
        """One step done. Reads nothing from the device: that would wait for it."""
        self._steps += 1
        self.bar.update()

    def rates(self) -> dict[str, float]:
        """`images_per_s` and `data_wait` (a share) since the last call."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rates = {"images_per_s": self._steps * self.images_per_step / seconds, "data_wait": self._waited / seconds}
        self._reset()
        return rates

    def show(self, row: Mapping[str, float]) -> None:
        """Put the loss and the rates of a logged row beside the bar."""
        text = f"loss {row['loss']:.3f}, {row['images_per_s']:.0f} images/s, waiting {row['data_wait']:.1%}"
        self.bar.set_postfix_str(text, refresh=False)

    def back_to(self, step: int) -> None:
        """The run went back to an earlier step."""
        self.bar.n = step
        self.bar.refresh()

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""
        if not self.bar.disable:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
