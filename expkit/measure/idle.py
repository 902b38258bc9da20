"""Whether threads of this process work while nothing is asked of them.

In a comparison cells share a process. A thread that one of them has left running takes its core
from the other, and what it uses passes for the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from time import perf_counter, process_time, sleep

LOOKS = 20
"""How often it is looked for: a thread that goes on has been seen by then."""
WINDOW_S = 5e-3
"""Longer than the kernel lets other processes run before a thread that wants to."""
PATIENCE_S = 0.05
"""How long threads may go on after a parallel loop, waiting for the next: OpenMP's and BLAS's do
for some 30 ms at most."""
WORKING = 0.2
"""Cores from which threads work."""
OFTEN = 1 / 3
"""The share of the looks from which it is said."""


def cores_at_rest() -> float:
    """Cores that this process uses now, while the thread that asks sleeps.

    Where it uses any it is waited for, `PATIENCE_S` at most. Takes `WINDOW_S` else.
    """
    started = perf_counter()
    while True:
        begun, ran = perf_counter(), process_time()
        sleep(WINDOW_S)
        cores = (process_time() - ran) / (perf_counter() - begun)
        if cores < WORKING or perf_counter() - started > PATIENCE_S:
            return cores


def worked_meanwhile(cores: Sequence[float]) -> list[str]:
    """What to say of the cores in use before each placement.

    >>> worked_meanwhile([0.01, 0.02, 0.9, 0.02]), worked_meanwhile([])
    ([], [])
    >>> worked_meanwhile([0.9, 0.0, 0.9])
    ['load: another thread of this process worked meanwhile, on 0.6 cores; --isolate parts them']
    """
    seen = sum(used >= WORKING for used in cores)
    if not seen or seen < OFTEN * len(cores):
        return []
    on = f"on {fmean(cores):.1f} cores"
    return [f"load: another thread of this process worked meanwhile, {on}; --isolate parts them"]
