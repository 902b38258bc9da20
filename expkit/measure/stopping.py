"""When to stop repeating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from expkit.errors import require
from expkit.measure.statistics import median_interval

PARITY = ("report", "require")
MOST = 1000
"""Processes that measure one after another: some minutes of starting alone."""
LONG_S = 0.25
"""A repeat that takes no longer than this is never long."""
LONG_SHARE = 0.25
"""The share of the budget from which on a repeat is long."""


@dataclass(frozen=True)
class Measure:
    """How long to measure.

    Attributes:
        repeats_min: repeats at least. Where one repeat takes long, see `fitted`, as many placements
            as they would have had, with one repeat each.
        repeats_max: repeats at most.
        repeats_per_placement: repeats of a round, before the arrays are placed anew. The interval
            is over rounds: it takes 6 of them.
        processes: 1, or from 6 on, as many interpreters that measure one after another, each within
            these limits: then the process is the unit of the interval, which takes 6.
        budget_s: seconds after which no further repeat starts, once there are repeats_min.
        target_ci: stop when the interval of the median is this narrow, as a share of the median.
        warmup: untimed steps before each repeat, at most a tenth of its steps.
        threshold: of a comparison: the smallest difference that matters, as a share.
        parity: `report` a difference in dtype, device, threads, start or data and go on, or
            `require` that there is none.
    """

    repeats_min: int = 12
    repeats_max: int = 40
    repeats_per_placement: int = 2
    processes: int = 1
    budget_s: float = 0.25
    target_ci: float = 0.05
    warmup: int = 20
    threshold: float = 0.02
    parity: str = "report"

    def __post_init__(self) -> None:
        require(self.repeats_min >= 1, "repeats_min", self.repeats_min, "an integer of at least 1")
        takes = f"an integer of at least repeats_min ({self.repeats_min})"
        require(self.repeats_max >= self.repeats_min, "repeats_max", self.repeats_max, takes)
        per_placement = self.repeats_per_placement
        takes = "an integer of at least 1"
        require(per_placement >= 1, "repeats_per_placement", per_placement, takes)
        takes = f"1, or an integer of at least 6 (an interval takes as many) and at most {MOST}"
        several = 6 <= self.processes <= MOST
        require(self.processes == 1 or several, "processes", self.processes, takes)
        takes = "a finite number of at least 0"
        require(0 <= self.budget_s < math.inf, "budget_s", self.budget_s, takes)
        require(0 <= self.target_ci < math.inf, "target_ci", self.target_ci, takes)
        require(self.warmup >= 0, "warmup", self.warmup, "an integer of at least 0")
        takes = "a number between 0 and 1"
        require(0 < self.threshold < 1, "threshold", self.threshold, takes)
        require(self.parity in PARITY, "parity", self.parity, " or ".join(PARITY))

    @property
    def rounds_min(self) -> int:
        """Rounds that hold repeats_min."""
        return -(-self.repeats_min // self.repeats_per_placement)


def fitted(measure: Measure, repeat_s: float, sources: int = 1) -> Measure:
    """The limits for repeats that take this long.

    Only placements count as independent. Where a repeat takes more than a quarter of the budget
    (and more than a quarter of a second), the repeats beyond the first of a placement would cost
    much and tell little: each placement has one, and the number of placements stays.

    Args:
        repeat_s: of all sources together.

    >>> quick = Measure(repeats_min=12, repeats_per_placement=2, budget_s=0.25)
    >>> fitted(quick, 0.01) == quick
    True
    >>> long = fitted(quick, 5.0)
    >>> long.repeats_min, long.repeats_per_placement
    (6, 1)
    """
    if repeat_s <= max(LONG_S * sources, LONG_SHARE * measure.budget_s):
        return measure
    return replace(measure, repeats_min=measure.rounds_min, repeats_per_placement=1)


def most_repeats(measure: Measure, repeats: float, elapsed_s: float) -> int:
    """How many repeats it will come to at most, if they go on at the pace of these.

    >>> most_repeats(Measure(repeats_min=12, repeats_max=40, budget_s=1.0), 2, 0.1)
    20
    """
    each_s = elapsed_s / repeats
    in_budget = math.ceil(measure.budget_s / each_s) if each_s > 0 else measure.repeats_max
    return min(measure.repeats_max, max(measure.repeats_min, in_budget))


def seconds_left(measure: Measure, repeats: float, elapsed_s: float) -> float:
    """How many seconds are left at most, if repeats go on at the pace of these.

    >>> seconds_left(Measure(repeats_min=12, repeats_max=40, budget_s=0.25), 3, 1.5)
    4.5
    """
    left = most_repeats(measure, repeats, elapsed_s) - repeats
    return max(0.0, left * elapsed_s / repeats)


def limit_reached(measure: Measure, repeats: int, elapsed_s: float) -> str | None:
    """`repeats_max` or `budget_s`, or None to go on. Neither counts before repeats_min."""
    if repeats < measure.repeats_min:
        return None
    if repeats >= measure.repeats_max:
        return "repeats_max"
    return "budget_s" if elapsed_s >= measure.budget_s else None


def is_time_to_look(measure: Measure, rounds: int) -> bool:
    """Whether to see if enough is known: at rounds_min, twice, four times ... as many.

    Stopping at the first of many looks that happens to please makes intervals that hold the median
    less often than they say (Armitage, McPherson and Rowe 1969).
    """
    looks, rest = divmod(rounds, measure.rounds_min)
    return rest == 0 and looks.bit_count() == 1


def is_narrow(measure: Measure, middles: Sequence[float]) -> bool:
    """Whether half of the interval's width is at most target_ci of its middle: "± 2 %"."""
    interval = median_interval(middles)
    if interval is None:
        return False
    low, high = interval
    return high - low <= measure.target_ci * (high + low)
