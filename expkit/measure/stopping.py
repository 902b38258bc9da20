"""When to stop repeating."""

from __future__ import annotations

from collections.abc import Sequence

from expkit.config import Measure
from expkit.measure.statistics import median_interval


def reason_to_stop(measure: Measure, samples: Sequence[float], elapsed_s: float) -> str | None:
    """Which limit is reached, or None to go on: `repeats_max`, `target_ci` or `budget_s`.

    None of them counts before there are repeats_min samples. The target is met when half of the
    interval's width is at most target_ci of the median, as a person reads "± 2 %".
    """
    if len(samples) < measure.repeats_min:
        return None
    if len(samples) >= measure.repeats_max:
        return "repeats_max"
    interval = median_interval(samples)
    if interval is not None:
        low, high = interval
        if high - low <= measure.target_ci * (high + low):
            return "target_ci"
    return "budget_s" if elapsed_s >= measure.budget_s else None
