"""Whether a program keeps to the threads that it says it has: the processor's clock tells.

Processor time over the wall's is how many processors were in use on the clock. A library's helper
threads wait actively for the next call, some for tens of milliseconds (OpenBLAS, OpenMP), while
another library's compute: so of more than one thread as many helpers again are allowed for. What
other work in this process left behind is told from the program's own by timing it once more, when
the process has come to rest.
"""

from __future__ import annotations

from collections.abc import Callable
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


def overused(claimed: int, wall_s: float, cpu_s: float) -> float | None:
    """The processors in use, where that is more than these threads explain; else None.

    >>> overused(1, wall_s=1.0, cpu_s=1.9)
    1.9
    >>> overused(2, wall_s=1.0, cpu_s=2.9) is None
    True
    """
    if wall_s <= 0:
        return None
    used = cpu_s / wall_s
    allowed = 2 * claimed - 1 + SLACK
    return used if used > allowed and cpu_s - claimed * wall_s > SLACK_S else None


def overused_again(
    claimed: int, program: Program, synchronize: Callable[[], None], n: int
) -> float | None:
    """As `overused`, of fresh readings of n steps, each begun when the process was at rest."""
    wall_s = cpu_s = 0.0
    while wall_s < AGAIN_S:
        program.reset()
        synchronize()
        _rest()
        start, ran = perf_counter(), process_time()
        program.advance(n)
        synchronize()
        cpu_s += process_time() - ran
        wall_s += perf_counter() - start
    return overused(claimed, wall_s, cpu_s)


def _rest() -> None:
    """Wait until helper threads that somebody else has started sleep."""
    end = perf_counter() + REST_LIMIT_S
    while perf_counter() < end:
        start, ran = perf_counter(), process_time()
        sleep(REST_S)
        if process_time() - ran < AT_REST * (perf_counter() - start):
            return
