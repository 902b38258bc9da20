"""Whether a program keeps to the threads that it says it has: the processor's clock tells.

Processor time over the wall's is how many processors were in use on the clock. A library's helper
threads wait actively for the next call, some for tens of milliseconds (OpenBLAS, OpenMP), while
another library's compute: so of more than one thread as many helpers again are allowed for. What
other work in this process left behind is told from the program's own by timing it once more, when
the process has come to rest. The time that threads wait for a core counts too (Linux): two threads
that share a core with another process want two, and get less.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import get_native_id
from time import perf_counter, process_time, sleep

from expkit.contracts import Program

SLACK = 0.25
"""Processors beyond what is claimed that are nothing: the clocks are not read at one instant."""
SLACK_S = 0.02
"""Processor seconds beyond what is claimed that are nothing: some kernels count in ticks."""
REST_S = 0.005
REST_LIMIT_S = 0.5
"""The process is at rest when it takes nearly no processor time for REST_S. It is waited for this
long: helpers that go on for longer are the program's.
"""
AT_REST = 0.1
AGAIN_S = 0.2
"""Seconds on the clock that the second look takes, beyond its last reading."""


def overused(
    claimed: int, wall_s: float, cpu_s: float, queued_s: float = 0.0, own_s: float = 0.0
) -> float | None:
    """The processors in use or waited for, where that is more than these threads explain.

    While the thread that asks for the steps is kept from a core, a program with one thread does
    nothing at all. So that time counts with what the others wait, or not at all, whichever names
    more: the kernel forgets how long a thread waited that has ended.

    Args:
        cpu_s: processor seconds of all threads.
        queued_s: how long they were ready to run and had no core, those that have not ended.
        own_s: the part of this thread in that.

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
    """As `overused`, of fresh readings of n steps, each begun when the process was at rest."""
    wall_s = cpu_s = queued_s = own_s = 0.0
    while wall_s < AGAIN_S:
        program.reset()
        synchronize()
        _rest()
        queue, start, ran = Queue(), perf_counter(), process_time()
        program.advance(n)
        synchronize()
        cpu_s += process_time() - ran
        wall_s += perf_counter() - start
        queued_s += queue.seconds()
        own_s += queue.own_seconds()
    return overused(claimed, wall_s, cpu_s, queued_s, own_s)


class Queue:
    """How long threads of this process are ready to run and have no core, from now on (Linux)."""

    def __init__(self) -> None:
        self._before = self._read()

    def seconds(self) -> float:
        """Of all threads that there are now."""
        return sum(ns - self._before.get(thread, 0) for thread, ns in self._read().items()) / 1e9

    def own_seconds(self) -> float:
        """Of this thread alone."""
        thread = get_native_id()
        return (self._read().get(thread, 0) - self._before.get(thread, 0)) / 1e9

    def _read(self) -> dict[int, int]:
        found = {}
        for task in Path("/proc/self/task").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                found[int(task.name)] = int((task / "schedstat").read_text().split()[1])
        return found


def _rest() -> None:
    """Wait until helper threads that somebody else has started sleep."""
    end = perf_counter() + REST_LIMIT_S
    while perf_counter() < end:
        start, ran = perf_counter(), process_time()
        sleep(REST_S)
        if process_time() - ran < AT_REST * (perf_counter() - start):
            return
