"""Whether threads of this process work while nothing is asked of them.

In a comparison cells share a process. A thread that one of them has left running takes its core
from the other, and what it uses passes for the other's. It is told by the state that the kernel
gives it (proc(5)), which is the same whether or not other processes leave it a core.
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
"""A thread that works is found working at each of these looks, so far apart."""
PATIENCE_S = 0.05
"""How long threads may go on after a parallel loop, waiting for the next: OpenMP's and BLAS's do
for some 30 ms at most."""


def threads_at_work() -> int:
    """How many threads beside the one that asks work now; 0 where the kernel does not say.

    Waits up to `PATIENCE_S` for those that do to stop; takes two milliseconds where none does.
    """
    started = perf_counter()
    while True:
        working = _runnable()
        for _ in range(LOOKS - 1):
            sleep(LOOK_S)
            working &= _runnable()
        if not working or perf_counter() - started > PATIENCE_S:
            return len(working)


def _runnable() -> set[str]:
    """The other threads of this process that run or could."""
    found = set()
    for task in Path("/proc/self/task").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state = task.read_text().rpartition(")")[2].split()[0]
            if state == "R" and task.parent.name != str(threading.get_native_id()):
                found.add(task.parent.name)
    return found


def worked_meanwhile(threads: Sequence[int]) -> list[str]:
    """What to say of the threads that worked before each placement.

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
