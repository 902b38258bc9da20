"""Rounds of repeats from one source or several, interleaved.

Sources that are to be compared run in turn, A B B A, in an order drawn for every round: what the
machine does meanwhile touches all alike. Interleaving alone is not enough, so every round places
each source anew: see `expkit.measure.statistics`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter
from typing import Protocol

from expkit.measure.stopping import Measure, fitted, is_time_to_look, limit_reached


class Source(Protocol):
    """Where repeats come from: a program in this process, or a worker that holds one."""

    def place(self) -> None:
        """Begin a round: fresh, shifted memory, warmed up. Never on the clock."""
        ...

    def repeat(self) -> float | None:
        """Time one repeat, keep it and return its seconds; None: there is no more to be had."""
        ...


def run_rounds(
    sources: Sequence[Source], measure: Measure, enough: Callable[[], str | None]
) -> str | None:
    """Rounds until a limit is reached or enough is known.

    How long a repeat takes is known after the first of each source; see `fitted`.

    Args:
        enough: what is known, if that will do; asked after rounds_min rounds, twice as many, ...

    Returns:
        What ended it: `repeats_max`, `budget_s` or what `enough` said; None if no source was left.
    """
    left, started, repeats = list(sources), perf_counter(), 0
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
            if limit := limit_reached(measure, repeats, perf_counter() - started):
                return limit
            if turn == measure.repeats_per_placement:
                break
        if is_time_to_look(measure, rounds) and (known := enough()):
            return known
    raise AssertionError("count() does not end")
