"""One line on a terminal that says what is done or waited for; nothing elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from expkit.conduct import Watch
from expkit.measure.stopping import Measure, fitted, most_repeats, seconds_left
from expkit.record.result import Now
from expkit.units import roughly

REDRAW_S = 0.1
PLAIN, MEASURING = "{desc}", "{desc} {bar:20}{postfix}"


class Pace:
    """Keeps track of the repeats of cells that are measured in turn.

    Args:
        steps: the number of steps in a repeat.
        cells: how many cells take turns.
    """

    def __init__(self, measure: Measure, steps: int, cells: int) -> None:
        self._measure, self._steps, self._cells = measure, steps, cells
        self._repeats = [0.0] * cells
        self._first_s = [0.0] * cells
        """Estimated time of each cell's first repeat, which also decides the limits."""

    def reached(self, cell: int, now: Now) -> None:
        """Note how many repeats a cell has done, counting the current one in part."""
        before, self._repeats[cell] = self._repeats[cell], now.repeat - 1 + now.done / self._steps
        if now.repeat == 1:
            took_s = (self._repeats[cell] - before) * self._steps / now.steps_per_second
            self._first_s[cell] = (self._first_s[cell] * before + took_s) / self._repeats[cell]

    def most(self, elapsed_s: float) -> int:
        """Estimate the most repeats that a cell will have, from the pace so far."""
        done, limits = self._seen(elapsed_s)
        return most_repeats(limits, done, elapsed_s)

    def left_s(self, elapsed_s: float) -> float:
        """Estimate the most seconds that the repeats still take."""
        done, limits = self._seen(elapsed_s)
        return seconds_left(limits, done, elapsed_s)

    @property
    def begun(self) -> bool:
        """Whether any step has been measured yet."""
        return any(self._repeats)

    def _seen(self, elapsed_s: float) -> tuple[float, Measure]:
        """Return the mean number of repeats so far, and the limits for repeats of this duration."""
        done = sum(self._repeats) / self._cells
        return done, fitted(self._measure, sum(self._first_s), self._cells)


def line(now: Now, pace: Pace, elapsed_s: float) -> tuple[str, str]:
    """Return the text before and after the bar; the latter is empty if no bar is drawn."""
    if not now.repeat:
        return now.doing, ""
    if not pace.begun:
        return f"repeat {now.repeat}: {now.doing or 'measuring'}", ""
    said = f"repeat {now.repeat} of at most {max(now.repeat, pace.most(elapsed_s))}"
    left = f"{roughly(pace.left_s(elapsed_s))} left"
    if now.doing:
        return f"{said}, {left}: {now.doing}", ""
    loss = "" if now.loss is None else f", loss {now.loss:.4g}"
    figure = f", {now.figure}" if now.figure else ""
    return said, f"{left}{loss}{figure}, {now.steps_per_second:,.0f} steps/s"


@contextmanager
def progress(measure: Measure, steps: int, cells: int = 1) -> Iterator[Watch]:
    """Yield a function that shows the progress on a terminal; the runner calls it off the clock."""
    if not sys.stderr.isatty():
        yield lambda cell, now: None
        return
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no extra thread while the clock runs
    pace, drawn, begun, before = Pace(measure, steps, cells), 0.0, 0.0, ""
    size: dict[str, Any] = {"dynamic_ncols": True}
    if os.get_terminal_size(sys.stderr.fileno()).columns == 0:  # its size is unknown
        usual = shutil.get_terminal_size()
        size = {"ncols": usual.columns, "nrows": usual.lines}
    with tqdm(leave=False, file=sys.stderr, bar_format=PLAIN, total=1, **size) as bar:

        def watch(cell: int, now: Now) -> None:
            nonlocal drawn, begun, before
            if now.repeat:
                begun = begun or monotonic()
                if not now.doing:
                    pace.reached(cell, now)
            if now.doing == before and monotonic() - drawn < REDRAW_S:
                return
            drawn, before = monotonic(), now.doing
            elapsed_s = drawn - begun
            said, after = line(now, pace, elapsed_s)
            bar.bar_format = MEASURING if after else PLAIN
            if after:
                bar.n = min(1.0, elapsed_s / (elapsed_s + pace.left_s(elapsed_s)))
            bar.set_description_str(said, refresh=False)
            bar.set_postfix_str(after, refresh=True)

        yield watch


@contextmanager
def waiting_for(whom: str) -> Iterator[None]:
    """Show on a terminal what is being waited for."""
    live = sys.stderr.isatty()
    if live:
        print(f"waiting for {whom}", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
