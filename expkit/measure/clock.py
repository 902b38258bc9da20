"""The only place where time is read."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from expkit.contracts import Program


def timed(program: Program, synchronize: Callable[[], None], n: int) -> float:
    """Seconds that n steps take, all queued work included on both sides."""
    synchronize()
    start = perf_counter()
    program.advance(n)
    synchronize()
    return perf_counter() - start
