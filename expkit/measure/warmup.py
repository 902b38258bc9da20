"""Steps before the clock counts: the first call alone, then until a step's time settles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from expkit.contracts import Program
from expkit.measure.clock import timed

READING_S = 1e-3
SETTLED = 0.1
LIMIT_S = 1.0
"""Of warming up, where a step's time does not settle; two readings at least."""


@dataclass(frozen=True)
class WarmUp:
    """What was seen before the clock counted. None of it is in a result.

    Attributes:
        first_seconds: the first step: imports, compilation and allocation that waited for it.
        seconds, steps: all of it.
        step_seconds: of a step at the end.
        settled: whether two readings in a row agreed to within a tenth.
    """

    first_seconds: float
    seconds: float
    steps: int
    step_seconds: float
    settled: bool


def warm_up(program: Program, synchronize: Callable[[], None], room: int) -> WarmUp:
    """Run steps until their time settles, then reset.

    Readings double from one step until they last a millisecond; where there is no room for that,
    all of them together do.

    Args:
        room: the most steps between two resets.
    """
    started = perf_counter()
    first = timed(program, synchronize, 1)
    n, total, done, before, settled = 1, 1, 1, math.nan, False
    spent = 0.0
    while not settled and (total < 3 or perf_counter() - started < LIMIT_S):
        if done + n > room:
            program.reset()
            done = 0
        seconds = timed(program, synchronize, n)
        done, total, spent = done + n, total + n, spent + seconds
        long_enough = seconds >= READING_S or (n == room and spent >= READING_S)
        settled = long_enough and abs(seconds / n - before) <= SETTLED * before
        before = seconds / n
        if not long_enough:
            n = min(2 * n, room)
    elapsed = perf_counter() - started
    program.reset()
    return WarmUp(first, elapsed, total, before, settled)
