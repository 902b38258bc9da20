"""What repeats say, without assuming how they are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Summary:
    """Repeats in short.

    Attributes:
        median: of the samples, in their unit.
        interval: 95 % confidence interval of the median; None for fewer than 6 samples.
        low, high: that interval, or the least and the greatest sample where there is none.
    """

    median: float
    interval: tuple[float, float] | None
    low: float
    high: float


def summarize(samples: Sequence[float]) -> Summary:
    """Median and interval of at least one sample.

    >>> summarize([3.0, 1.0, 2.0])
    Summary(median=2.0, interval=None, low=1.0, high=3.0)
    """
    interval = median_interval(samples)
    low, high = interval or (min(samples), max(samples))
    return Summary(median(samples), interval, low, high)


def median_interval(
    samples: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """The order-statistic interval of the median; None where there are too few samples.

    The narrowest pair of order statistics, counted from both ends alike, that holds the median
    with at least this probability, from the binomial law of how many samples lie below it (Hahn
    and Meeker, Statistical Intervals, 1991, section 5.2).

    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (1.0, 6.0)
    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    True
    """
    ordered, n = sorted(samples), len(samples)
    outside, trim = 0.0, None
    for rank in range(n // 2):
        outside += 2 * math.comb(n, rank) / 2**n
        if outside > 1 - confidence:
            break
        trim = rank
    return None if trim is None else (ordered[trim], ordered[-1 - trim])
