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
"""A reading is at least this many of the clock's resolutions long: 0.1 % at worst."""


def timed(program: Program, synchronize: Callable[[], None], n: int) -> float:
    """Seconds that n steps take, all queued work included on both sides."""
    synchronize()
    start = perf_counter()
    program.advance(n)
    synchronize()
    return perf_counter() - start


@cache
def resolution_seconds() -> float:
    """The clock's resolution as seen here: the median step between two consecutive readings.

    What the system declares (1 ns on Linux) is its unit; to read it takes some 50 ns.
    """
    readings = [perf_counter() for _ in range(1001)]
    return median(later - earlier for earlier, later in pairwise(readings))


def steps_of_a_reading(step_seconds: float) -> int:
    """How many steps make a reading long enough for the clock's resolution."""
    needed = READING_RESOLUTIONS * resolution_seconds()
    return max(1, -int(-needed // max(step_seconds, 1e-9)))


class _Enough(BaseException):
    """Ends work from inside a mark. Like an interrupt, it is no error of the work's."""


def laps(
    work: Callable[[Mark], object], synchronize: Callable[[], None], most_s: float = inf
) -> list[tuple[str, float]]:
    """The marks that `work` makes, each with the seconds since the one before.

    All work queued until a mark is in its lap; what keeping a lap takes is in none.

    Args:
        most_s: the work is ended at the mark at which the laps together take longer.
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
