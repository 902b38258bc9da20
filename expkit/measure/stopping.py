"""When to stop repeating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from expkit.errors import require
from expkit.measure.statistics import median_interval


@dataclass(frozen=True)
class Measure:
    """How long to measure.

    Attributes:
        repeats_min: repeats at least.
        repeats_max: repeats at most.
        budget_s: seconds after which no further repeat starts, once there are repeats_min.
        target_ci: stop when the interval of the median is this narrow, as a share of the median.
        warmup: untimed steps before each repeat, at most a tenth of its steps.
    """

    repeats_min: int = 6
    repeats_max: int = 20
    budget_s: float = 0.25
    target_ci: float = 0.05
    warmup: int = 20

    def __post_init__(self) -> None:
        require(self.repeats_min >= 1, "repeats_min", self.repeats_min, "an integer of at least 1")
        takes = f"an integer of at least repeats_min ({self.repeats_min})"
        require(self.repeats_max >= self.repeats_min, "repeats_max", self.repeats_max, takes)
        takes = "a finite number of at least 0"
        require(0 <= self.budget_s < math.inf, "budget_s", self.budget_s, takes)
        require(0 <= self.target_ci < math.inf, "target_ci", self.target_ci, takes)
        require(self.warmup >= 0, "warmup", self.warmup, "an integer of at least 0")


def reason_to_stop(measure: Measure, samples: Sequence[float], elapsed_s: float) -> str | None:
    """Which limit is reached, or None to go on: `repeats_max`, `target_ci` or `budget_s`.

    None of them counts before there are repeats_min samples. The target is met when half of the
    interval's width is at most target_ci of its middle, as a person reads "± 2 %". It is looked at
    when there are repeats_min, twice, four times ... as many: stopping at the first of many looks
    that happens to be narrow makes intervals that hold the median less often than they say.
    """
    if len(samples) < measure.repeats_min:
        return None
    if len(samples) >= measure.repeats_max:
        return "repeats_max"
    looks, rest = divmod(len(samples), measure.repeats_min)
    interval = median_interval(samples) if rest == 0 and looks.bit_count() == 1 else None
    if interval is not None:
        low, high = interval
        if high - low <= measure.target_ci * (high + low):
            return "target_ci"
    return "budget_s" if elapsed_s >= measure.budget_s else None
