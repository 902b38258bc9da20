"""Whether other threads of this process work while nothing is asked of them.

In a comparison, cells share a process. A thread that one cell has left running takes a core from
the other, and its processor time is taken for the other's. Such a thread is recognized by its state
in proc(5), which does not depend on whether other processes leave it a core, or by the time that it
has run since the last look: a thread that needs the interpreter lock rests while this one looks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median_low
from time import perf_counter, sleep

LOOKS = 3
LOOK_S = 1e-3
"""A thread is at work if it works between each two of LOOKS looks, LOOK_S seconds apart."""
PATIENCE_S = 0.2
"""How long threads may spin after a parallel loop, waiting for the next one: those of OpenMP and
BLAS do so for some 30 ms, or 100 ms where another process takes their core half of the time.
"""
SHARE = 0.02
"""The share of the time that looking may take: no repeat is measured meanwhile."""


class Lookout:
    """Looks at the other threads of this process now and then.

    Attributes:
        found: how many threads worked at each look.
    """

    def __init__(self) -> None:
        self.found: list[int] = []
        self._began = self._spent_s = 0.0

    def look(self) -> None:
        """Look, unless looking has taken more than its share of the time since the first look."""
        started = perf_counter()
        if not self.found:
            self._began = started
        elif self._spent_s > SHARE * (started - self._began):
            return
        self.found.append(threads_at_work())
        self._spent_s += perf_counter() - started


def threads_at_work() -> int:
    """The number of other threads that work now; 0 where the kernel does not say.

    Waits up to `PATIENCE_S` for them to stop; takes two milliseconds where none works.
    """
    started = perf_counter()
    while True:
        before = _others()
        working = set(before)
        for _ in range(LOOKS - 1):
            sleep(LOOK_S)
            now = _others()
            working = {name for name in working & set(now) if _worked(before[name], now[name])}
            before = now
        if not working or perf_counter() - started > PATIENCE_S:
            return len(working)


def _others() -> dict[str, tuple[bool, float]]:
    """For each other thread of this process: whether it is running or ready to run, and for how
    many seconds it has been so.
    """
    found = {}
    for task in Path("/proc/self/task").glob("[0-9]*"):
        if task.name == str(threading.get_native_id()):
            continue
        with suppress(OSError):  # it has ended, or the kernel does not say
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            ran, queued, _ = map(int, (task / "schedstat").read_text().split())
            found[task.name] = state == "R", (ran + queued) / 1e9
    return found


def _worked(before: tuple[bool, float], now: tuple[bool, float]) -> bool:
    return (before[0] and now[0]) or now[1] - before[1] > LOOK_S / 2


def worked_meanwhile(threads: Sequence[int]) -> list[str]:
    """The warning about threads that worked at most looks, if any.

    >>> worked_meanwhile([0, 1, 0, 0]), worked_meanwhile([])
    ([], [])
    >>> worked_meanwhile([1, 1, 0, 1])
    ['load: another thread of this process worked meanwhile; --isolate parts them']
    """
    usual = median_low(threads) if threads else 0
    if not usual:
        return []
    who = "another thread" if usual == 1 else f"{usual} other threads"
    return [f"load: {who} of this process worked meanwhile; --isolate parts them"]
