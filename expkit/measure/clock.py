"""The clock. Only the framework reads it: no plugin times itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import pairwise
from math import inf
from statistics import median
from time import perf_counter

from expkit.contracts import Mark, Program

READING_RESOLUTIONS = 1000
"""A reading lasts at least this many resolutions of the clock: its error is at most 0.1 %."""


def timed(program: Program, synchronize: Callable[[], None], n: int) -> float:
    """Seconds that n steps take. No work is queued when the clock starts, nor when it stops."""
    synchronize()
    start = perf_counter()
    program.advance(n)
    synchronize()
    return perf_counter() - start


@cache
def resolution_seconds() -> float:
    """The clock's resolution as seen here: the median step between two consecutive readings.

    The value that the system declares (1 ns on Linux) is only the unit; a reading takes some 50 ns.
    """
    readings = [perf_counter() for _ in range(1001)]
    return median(later - earlier for earlier, later in pairwise(readings))


def steps_of_a_reading(step_seconds: float) -> int:
    """How many steps make a reading long enough for the clock's resolution."""
    needed = READING_RESOLUTIONS * resolution_seconds()
    return max(1, -int(-needed // max(step_seconds, 1e-9)))


class _Enough(BaseException):
    """Ends work from inside a mark. It is not an Exception, so that the work does not catch it."""


def laps(
    work: Callable[[Mark], object], synchronize: Callable[[], None], most_s: float = inf
) -> list[tuple[str, float]]:
    """Return the marks that `work` makes, each with the seconds since the one before.

    All work queued before a mark counts in its lap. Recording a lap counts in none.

    Args:
        most_s: end the work at the first mark at which the laps together take longer than this.
    """
    found: list[tuple[str, float]] = []
    left = most_s
    synchronize()
    start = perf_counter()

    def mark(part: str) -> None:
        nonlocal start, left
        synchronize()
        took = perf_counter() - start
        found.append((part, took))
        left -= took
        if left < 0:
            raise _Enough
        start = perf_counter()

    with suppress(_Enough):
        work(mark)
    return found
