"""Rounds of repeats from one source or several, interleaved.

Sources that are to be compared run in turn, A B B A, in an order drawn for every round: what the
machine does meanwhile affects all of them alike. Interleaving alone is not enough, so every round
places each source anew: see `expkit.measure.statistics`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter, sleep
from typing import Protocol

from expkit.measure.stopping import (
    Measure,
    fitted,
    is_time_to_look,
    limit_reached,
    rest_seconds,
    settle_until,
)


class Source(Protocol):
    """Where repeats come from: a program in this process, or a worker that holds one."""

    def place(self) -> None:
        """Begin a round: fresh, shifted memory, warmed up. Never on the clock."""
        ...

    def repeat(self) -> float | None:
        """Time one repeat, keep it and return its seconds; None if it can have no more repeats."""
        ...


def run_rounds(
    sources: Sequence[Source],
    measure: Measure,
    enough: Callable[[], str | None],
    width: Callable[[], float] = lambda: math.inf,
) -> str | None:
    """Run rounds until a limit is reached or enough is known.

    The limits are fitted to the length of a repeat after the first repeat of each source, see
    `fitted`. If a look does not find enough, the rounds that follow may be spread over time, see
    `settle_until`.

    Args:
        enough: returns what is known if that suffices, else None; called after rounds_min rounds,
            twice as many, four times ...
        width: returns the width of the interval that has to become narrow, infinite where there is
            none; called as often.

    Returns:
        What ended it: `repeats_max`, `budget_s`, `settle_s` or what `enough` said; None if no
        source was left.
    """
    left, started, repeats = list(sources), perf_counter(), 0
    settle_s: float | None = None
    rested_s, widths = 0.0, list[float]()
    for rounds in count(1):
        random.shuffle(left)
        for source in left:
            source.place()
        for turn in count(1):
            took = [(source, source.repeat()) for source in left]
            left = [source for source, seconds in reversed(took) if seconds is not None]
            repeats += 1
            if not left:
                return None
            if repeats == 1:
                measure = fitted(measure, sum(s for _, s in took if s is not None), len(left))
            limit = limit_reached(measure, repeats, perf_counter() - started)
            if limit == "repeats_max" or (limit and not measure.may_settle):
                return limit
            if turn == measure.repeats_per_placement:
                break
        elapsed_s = perf_counter() - started
        round_s = (elapsed_s - rested_s) / rounds
        if is_time_to_look(measure, rounds):
            if known := enough():
                return known
            widths.append(width())
            if len(widths) == 1 and widths[0] < math.inf:
                settle_s = settle_until(measure, rounds, elapsed_s, round_s)
            elif len(widths) > 1 and widths[-1] >= widths[-2]:
                settle_s = None
        if settle_s is None:
            if limit := limit_reached(measure, repeats, elapsed_s):
                return limit
        elif elapsed_s >= settle_s:
            return "settle_s"
        else:
            left_s = settle_s - elapsed_s
            # A random rest keeps rounds from falling into step with periodic load.
            rest_s = random.uniform(0.5, 1.5) * rest_seconds(measure, rounds, left_s, round_s)
            sleep(min(rest_s, max(0.0, left_s - round_s)))
            rested_s += perf_counter() - started - elapsed_s
    raise AssertionError("count() does not end")
