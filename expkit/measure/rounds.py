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

from expkit.measure.stopping import Measure, is_time_to_look, limit_reached


class Source(Protocol):
    """Where repeats come from: a program in this process, or a worker that holds one."""

    def place(self) -> None:
        """Begin a round: fresh, shifted memory, warmed up. Never on the clock."""
        ...

    def repeat(self) -> bool:
        """Time one repeat and keep it; False if this source has no more to give."""
        ...


def run_rounds(
    sources: Sequence[Source], measure: Measure, enough: Callable[[], str | None]
) -> str | None:
    """Rounds until a limit is reached or enough is known.

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
        for _ in range(measure.repeats_per_placement):
            left = [source for source in left if source.repeat()]
            left.reverse()
            repeats += 1
            if not left:
                return None
            if limit := limit_reached(measure, repeats, perf_counter() - started):
                return limit
        if is_time_to_look(measure, rounds) and (known := enough()):
            return known
    raise AssertionError("count() does not end")
