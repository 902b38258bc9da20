"""Whether a program uses no more threads than it says, judged by its processor time.

Processor time divided by wall time is the number of processors in use on the clock. The helper
threads of a library spin while they wait for the next call, some for tens of milliseconds
(OpenBLAS, OpenMP), and another library's may compute meanwhile: so a program with more than one
thread is allowed as many helpers again. To tell its work from what other cells left running in this
process, it is timed once more when the process has come to rest. Time in which threads wait for a
core counts too (Linux): two threads that share a core with another process want two, and get less.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import get_native_id
from time import perf_counter, process_time, sleep

from expkit.contracts import Program

SLACK = 0.25
"""Processors beyond the claim that are ignored: the clocks are not read at the same instant."""
SLACK_S = 0.02
"""Processor seconds beyond the claim that are ignored: some kernels count in ticks."""
REST_S = 0.005
REST_LIMIT_S = 0.5
"""The process is at rest when it takes nearly no processor time for REST_S. It is waited for this
long: helpers that go on for longer are the program's.
"""
AT_REST = 0.1
AGAIN_S = 0.2
"""The second look ends with the reading that brings it to this many seconds on the clock."""


def overused(
    claimed: int, wall_s: float, cpu_s: float, queued_s: float = 0.0, own_s: float = 0.0
) -> float | None:
    """The number of processors used or waited for, if these threads do not explain it; else None.

    While the calling thread waits for a core, a program with one thread does nothing. So either the
    waiting of all threads is added to their processor time, or the calling thread's is left out of
    the wall time, whichever gives more: the kernel forgets the waiting of threads that have ended.

    Args:
        cpu_s: processor seconds of all threads.
        queued_s: seconds that they waited for a core, without those that have ended.
        own_s: the calling thread's part of that.

    >>> overused(1, wall_s=1.0, cpu_s=1.9)
    1.9
    >>> overused(2, wall_s=1.0, cpu_s=2.9) is None
    True
    >>> overused(1, wall_s=1.0, cpu_s=1.0, queued_s=0.5, own_s=0.5)
    2.0
    """
    found = (
        (used, of_s)
        for used, of_s in ((cpu_s + queued_s, wall_s), (cpu_s, wall_s - own_s))
        if of_s > 0 and used > of_s * (2 * claimed - 1 + SLACK) and used - claimed * of_s > SLACK_S
    )
    return max((used / of_s for used, of_s in found), default=None)


def overused_again(
    claimed: int, program: Program, synchronize: Callable[[], None], n: int
) -> float | None:
    """Do as `overused` with new readings of n steps, each begun when the process is at rest."""
    wall_s = cpu_s = queued_s = own_s = 0.0
    while wall_s < AGAIN_S:
        program.reset()
        synchronize()
        _rest()
        # The waiting is read within the time that it is held against: on a busy machine the reading
        # waits too, and would leave too little of the wall time.
        start, ran = perf_counter(), process_time()
        queue = Queue()
        program.advance(n)
        synchronize()
        own_s += queue.own_seconds()
        queued_s += queue.seconds()
        cpu_s += process_time() - ran
        wall_s += perf_counter() - start
    return overused(claimed, wall_s, cpu_s, queued_s, own_s)


class Queue:
    """Counts how long the threads of this process wait for a core, from now on (Linux)."""

    def __init__(self) -> None:
        self._before = self._read()

    def seconds(self) -> float:
        """Seconds that all threads which exist now have waited."""
        return sum(ns - self._before.get(thread, 0) for thread, ns in self._read().items()) / 1e9

    def own_seconds(self) -> float:
        """Seconds that the calling thread has waited."""
        thread = get_native_id()
        return (self._read().get(thread, 0) - self._before.get(thread, 0)) / 1e9

    def _read(self) -> dict[int, int]:
        found = {}
        for task in Path("/proc/self/task").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                found[int(task.name)] = int((task / "schedstat").read_text().split()[1])
        return found


def _rest() -> None:
    """Wait until the helper threads that other work has left running sleep."""
    end = perf_counter() + REST_LIMIT_S
    while perf_counter() < end:
        start, ran = perf_counter(), process_time()
        sleep(REST_S)
        if process_time() - ran < AT_REST * (perf_counter() - start):
            return
