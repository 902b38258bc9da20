"""Two ways of doing the same, timed in turn, so that a drifting machine touches both alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

Work = Callable[[], object]


@dataclass(frozen=True)
class Paired:
    """Medians in seconds, and the median, least and greatest ratio other / ours of the pairs."""

    ours: float
    other: float
    ratio: float
    low: float
    high: float


def paired(ours: Work, other: Work, rounds: int) -> Paired:
    """Time both `rounds` times after a warm-up of each, changing who goes first."""
    ours(), other()
    mine: list[float] = []
    theirs: list[float] = []
    for index in range(rounds):
        turns = [(ours, mine), (other, theirs)]
        for work, seconds in turns if index % 2 else reversed(turns):
            start = perf_counter()
            work()
            seconds.append(perf_counter() - start)
    ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
    return Paired(median(mine), median(theirs), median(ratios), min(ratios), max(ratios))
