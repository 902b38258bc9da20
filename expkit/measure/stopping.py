"""When to stop repeating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from expkit.errors import check
from expkit.measure.statistics import ROUNDS_MIN, median_interval

PARITY = ("report", "require")
MOST = 1000
"""The most processes that measure one after another: starting so many takes some minutes."""
LONG_S = 0.25
"""A repeat that takes no longer than this never counts as long."""
LONG_SHARE = 0.25
"""The share of the budget above which a repeat counts as long."""


@dataclass(frozen=True)
class Measure:
    """How long to measure.

    Attributes:
        repeats_min: the fewest repeats. If one repeat takes long, there are as many placements as
            these would have, with one repeat each, see `fitted`.
        repeats_max: the most repeats.
        repeats_per_placement: repeats of a round, before the arrays are placed anew. The interval
            is over rounds and needs 6 of them.
        processes: the number of interpreters that measure one after another, each within these
            limits: 1, or at least 6. With several, the interval is over processes and needs 6.
        budget_s: seconds after which no further repeat starts, once there are repeats_min.
        target_ci: stop when the interval of the median is this narrow, as a share of the median.
        settle_s: further seconds after budget_s for an interval that is too wide but still
            narrowing, with rounds spread over them, see `settle_until`; 0 for none. Not used where
            repeats_min is too few for an interval, or target_ci is 0.
        warmup: untimed steps before each repeat, at most a tenth of its steps.
        threshold: the smallest difference that matters in a comparison, as a share.
        parity: `report` a difference in dtype, device, threads, start or data and go on, or
            `require` that there is none.
        checkpoint_s: a run of a single repeat, as with `measure=once`, keeps a checkpoint every so
            many seconds, from which `expkit resume` goes on; 0 for none.
    """

    repeats_min: int = 12
    repeats_max: int = 40
    repeats_per_placement: int = 2
    processes: int = 1
    budget_s: float = 0.25
    target_ci: float = 0.05
    settle_s: float = 0.0
    warmup: int = 20
    threshold: float = 0.02
    parity: str = "report"
    checkpoint_s: float = 60.0

    def __post_init__(self) -> None:
        check(self.repeats_min >= 1, "repeats_min", self.repeats_min, "an integer of at least 1")
        takes = f"an integer of at least repeats_min ({self.repeats_min})"
        check(self.repeats_max >= self.repeats_min, "repeats_max", self.repeats_max, takes)
        per_placement = self.repeats_per_placement
        takes = "an integer of at least 1"
        check(per_placement >= 1, "repeats_per_placement", per_placement, takes)
        takes = f"1, or an integer of at least 6 (an interval takes as many) and at most {MOST}"
        several = 6 <= self.processes <= MOST
        check(self.processes == 1 or several, "processes", self.processes, takes)
        takes = "a finite number of at least 0"
        check(0 <= self.budget_s < math.inf, "budget_s", self.budget_s, takes)
        check(0 <= self.target_ci < math.inf, "target_ci", self.target_ci, takes)
        check(0 <= self.settle_s < math.inf, "settle_s", self.settle_s, takes)
        check(self.warmup >= 0, "warmup", self.warmup, "an integer of at least 0")
        takes = "a number between 0 and 1"
        check(0 < self.threshold < 1, "threshold", self.threshold, takes)
        check(self.parity in PARITY, "parity", self.parity, " or ".join(PARITY))
        takes = "a finite number of at least 0"
        check(0 <= self.checkpoint_s < math.inf, "checkpoint_s", self.checkpoint_s, takes)

    @property
    def once(self) -> bool:
        """Whether there is a single repeat."""
        return self.repeats_max == 1 and self.processes == 1

    @property
    def rounds_min(self) -> int:
        """The number of rounds that repeats_min takes."""
        return -(-self.repeats_min // self.repeats_per_placement)

    @property
    def rounds_max(self) -> int:
        """The number of rounds that repeats_max takes."""
        return -(-self.repeats_max // self.repeats_per_placement)

    @property
    def may_settle(self) -> bool:
        """Whether there is an interval that may yet become as narrow as asked."""
        return self.settle_s > 0 and self.target_ci > 0 and self.rounds_min >= ROUNDS_MIN


def fitted(measure: Measure, repeat_s: float, sources: int = 1) -> Measure:
    """Fit the limits to repeats that take this long.

    Only placements count as independent. Where a repeat takes more than a quarter of the budget
    (and more than a quarter of a second), further repeats of a placement would cost much and tell
    little: each placement then has one repeat, and the number of placements stays.

    Args:
        repeat_s: seconds of a repeat, all sources together.

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
    """The most repeats that there will be, if they go on at the pace so far.

    >>> most_repeats(Measure(repeats_min=12, repeats_max=40, budget_s=1.0), 2, 0.1)
    20
    """
    each_s = elapsed_s / repeats
    round_s = each_s * measure.repeats_per_placement
    look_s = measure.rounds_min * round_s
    longest_s = settle_until(measure, measure.rounds_min, look_s, round_s) or measure.budget_s
    in_budget = math.ceil(longest_s / each_s) if each_s > 0 else measure.repeats_max
    return min(measure.repeats_max, max(measure.repeats_min, in_budget))


def seconds_left(measure: Measure, repeats: float, elapsed_s: float) -> float:
    """The most seconds that are left, if repeats go on at the pace so far.

    >>> seconds_left(Measure(repeats_min=12, repeats_max=40, budget_s=0.25), 3, 1.5)
    4.5
    """
    left = most_repeats(measure, repeats, elapsed_s) - repeats
    return max(0.0, left * elapsed_s / repeats)


def limit_reached(measure: Measure, repeats: int, elapsed_s: float) -> str | None:
    """`repeats_max` or `budget_s` where it is reached, else None. None before repeats_min."""
    if repeats < measure.repeats_min:
        return None
    if repeats >= measure.repeats_max:
        return "repeats_max"
    return "budget_s" if elapsed_s >= measure.budget_s else None


def is_time_to_look(measure: Measure, rounds: int) -> bool:
    """Whether to look if enough is known: after rounds_min rounds, twice, four times ... as many.

    Stopping at the first of many looks that happens to suffice makes intervals that contain the
    median less often than they claim (Armitage, McPherson and Rowe 1969).
    """
    looks, rest = divmod(rounds, measure.rounds_min)
    return rest == 0 and looks.bit_count() == 1


def settle_until(measure: Measure, rounds: int, elapsed_s: float, round_s: float) -> float | None:
    """The latest end of a measurement whose interval is too wide at its first look.

    In seconds from its beginning; None where it ends with its budget.

    A burst of load that lasts longer than the budget is in all rounds or in none, so that a few
    more rounds right away tell nothing. They are spread over what is left of the budget and
    settle_s more, if the next look is reached in this time.

    Args:
        rounds: the number of rounds done after `elapsed_s`.
        round_s: seconds of a round.

    >>> quick = Measure(repeats_min=12, repeats_per_placement=2, budget_s=0.25, settle_s=2.0)
    >>> settle_until(quick, 6, 0.15, 0.025), settle_until(quick, 6, 0.5, 0.08)
    (2.25, 2.5)
    >>> settle_until(quick, 6, 12.0, 2.0) is None
    True
    """
    ends_s = max(measure.budget_s, elapsed_s) + measure.settle_s
    fits = elapsed_s + rounds * round_s <= ends_s
    return ends_s if measure.may_settle and fits else None


def rest_seconds(measure: Measure, rounds: int, left_s: float, round_s: float) -> float:
    """How long to rest before each round until the next look, to spread the rounds over time.

    The looks that may still come get equal shares of the time; the last of them is the end.

    Args:
        rounds: the number of rounds done.
        left_s: seconds until the latest end.
        round_s: seconds of a round.

    >>> quick = Measure(repeats_min=12, repeats_max=40, repeats_per_placement=2)
    >>> rest_seconds(quick, 6, 2.0, 0.02), rest_seconds(quick, 6, 0.2, 0.02)
    (0.14..., 0.0)
    """
    if round_s <= 0:
        return 0.0
    most = min(measure.rounds_max, rounds + int(left_s / round_s))
    look = measure.rounds_min * 2 ** (rounds // measure.rounds_min).bit_length()
    between = min(look, most) - look // 2
    if between <= 0:
        return 0.0
    shares = (min(look, most) - rounds) / between
    while look < most:
        look, shares = 2 * look, shares + 1
    return max(0.0, left_s / shares / between - round_s) if shares else 0.0


def half_width(middles: Sequence[float]) -> float:
    """Half of the width of the median's interval, as a share of its middle: "± 2 %".

    Infinite where there is no interval.
    """
    interval = median_interval(middles)
    if interval is None:
        return math.inf
    low, high = interval
    return (high - low) / (high + low)


def is_narrow(measure: Measure, middles: Sequence[float]) -> bool:
    """Whether half of the interval's width is at most target_ci of its middle: "± 2 %"."""
    return half_width(middles) <= measure.target_ci
