"""Warming up: the steps that run before any are timed.

The first step runs alone. More steps follow until their time settles, then one pass of every length
that will be timed, because a compiler may compile for each number of steps anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter

from expkit.contracts import Program
from expkit.measure.clock import timed

READING_S = 1e-3
SETTLED = 0.1
LIMIT_S = 1.0
"""The most seconds of warming up, where a step's time does not settle, though for two readings at
least. The first pass of a length does not count: compiling takes as long as it takes."""
GROWTH = 8
"""The factor from the steps of a reading to those of the next; each number may be compiled for."""
NOISE = 0.5
"""The share of its steps' time by which a pass may take longer for other reasons than compiling."""


@dataclass(frozen=True)
class WarmUp:
    """What warming up has shown. None of it counts in a measured time.

    Attributes:
        first_seconds: seconds of the first step, with imports, compilation and allocation that
            were put off until then.
        seconds, steps: the totals of warming up.
        step_seconds: seconds of a step at the end.
        settled: whether two readings in a row agreed to within a tenth.
        first_passes: seconds of the first pass of every length, by its number of steps.
        compile_seconds: by how much the first passes of the lengths that will be timed exceeded
            their steps' time.
    """

    first_seconds: float
    seconds: float
    steps: int
    step_seconds: float
    settled: bool
    first_passes: Mapping[int, float] = field(default_factory=dict)
    compile_seconds: float = 0.0


def warm_up(program: Program, synchronize: Callable[[], None], room: int) -> WarmUp:
    """Run steps until their time settles, then reset.

    Readings grow from one step until they last a millisecond; where there is no room for that,
    until all of them together do. The first pass of a length is no reading.

    Args:
        room: the most steps between two resets.
    """
    started = perf_counter()
    first = timed(program, synchronize, 1)
    first_passes = {1: first}
    n, total, done, before, settled = 1, 1, 1, math.nan, False
    spent = 0.0

    def elapsed_s() -> float:
        return perf_counter() - started - sum(first_passes.values())

    while not settled and (total < 3 or elapsed_s() < LIMIT_S):
        if done + n > room:
            program.reset()
            done = 0
        seconds = timed(program, synchronize, n)
        done, total = done + n, total + n
        if n not in first_passes:
            first_passes[n] = seconds
            continue
        spent += seconds
        long_enough = seconds >= READING_S or (n == room and spent >= READING_S)
        settled = long_enough and abs(seconds / n - before) <= SETTLED * before
        before = seconds / n
        if not long_enough:
            n = min(GROWTH * n, room)
    elapsed = perf_counter() - started
    program.reset()
    return WarmUp(first, elapsed, total, before, settled, first_passes)


def run_before(
    program: Program, synchronize: Callable[[], None], lengths: Collection[int], warm: WarmUp
) -> WarmUp:
    """Run every length that will be timed and has not been run, once, then reset.

    Args:
        lengths: how many steps each call will make.
        warm: the result of `warm_up` for this program.

    Returns:
        That result, with these passes and by how much they exceeded their steps' time.
    """
    started, first_passes = perf_counter(), dict(warm.first_passes)
    for n in lengths:
        if n not in first_passes:
            program.reset()
            first_passes[n] = timed(program, synchronize, n)
    elapsed = perf_counter() - started
    program.reset()
    steps = sum(n for n in first_passes if n not in warm.first_passes)
    compiling = (
        first_passes[n] - n * warm.step_seconds
        for n in lengths
        if first_passes[n] > (1 + NOISE) * n * warm.step_seconds
    )
    return replace(
        warm,
        seconds=warm.seconds + elapsed,
        steps=warm.steps + steps,
        first_passes={n: first_passes[n] for n in lengths},
        compile_seconds=sum(compiling),
    )
