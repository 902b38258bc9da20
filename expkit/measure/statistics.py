"""Statistics of repeats, which assume nothing about their distribution.

Repeats are nested in rounds: a round is one placement of the program's arrays, which moves its
times by several percent for as long as it lives (Mytkowicz et al., ASPLOS 2009). Repeats of one
round share that; only rounds are independent, so the round is the unit of every interval (Kalibera
and Jones, ISMM 2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

Rounds = Sequence[Sequence[float]]
"""Seconds of each repeat, by round."""

ROUNDS_MIN = 6
"""The fewest rounds for an interval: the range of 5 contains the median in only 94 % of cases."""


@dataclass(frozen=True)
class Summary:
    """A summary of rounds.

    A round is a placement; where several processes measured, it is a process, see `nested`.

    Attributes:
        median: the median of the rounds' medians, in seconds.
        interval: 95 % confidence interval of the median; None for fewer than 6 rounds.
        low, high: that interval, or where there is none the least and the greatest round's median.
        repeats, rounds: how many there were.
        placement_share: the part of the repeats' variance that lies between rounds, 0 to 1; None
            where no round has two repeats.
        outliers: repeats beyond Tukey's fences. They stay in every figure.
        worst: the slowest repeat as a multiple of the median.
    """

    median: float
    interval: tuple[float, float] | None
    low: float
    high: float
    repeats: int
    rounds: int
    placement_share: float | None
    outliers: int
    worst: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval, as a share of its middle: "± 2 %"."""
        return (self.high - self.low) / (self.high + self.low)


def summarize(rounds: Rounds) -> Summary:
    """Median and interval of at least one round.

    >>> found = summarize([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]])
    >>> found.median, found.interval, found.low, found.high, found.placement_share
    (2.0, None, 1.0, 3.0, 1.0)
    """
    middles = [median(repeats) for repeats in rounds]
    interval = median_interval(middles)
    low, high = interval or (min(middles), max(middles))
    every = [seconds for repeats in rounds for seconds in repeats]
    return Summary(
        median=median(middles),
        interval=interval,
        low=low,
        high=high,
        repeats=len(every),
        rounds=len(middles),
        placement_share=placement_share(rounds),
        outliers=outliers(every),
        worst=max(every) / median(middles),
    )


def nested(processes: Sequence[Rounds]) -> Rounds:
    """The rounds of a single process, or else each process with the medians of its rounds.

    >>> nested([[[1.0, 1.0], [2.0, 2.0]]])
    [[1.0, 1.0], [2.0, 2.0]]
    >>> nested([[[1.0, 1.0], [2.0, 2.0]], [[3.0, 5.0]]])
    [[1.0, 2.0], [4.0]]
    """
    if len(processes) == 1:
        return processes[0]
    return [[median(repeats) for repeats in rounds] for rounds in processes]


def median_interval(
    samples: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """The order-statistic interval of the median; None where there are too few samples.

    The narrowest pair of order statistics, counted from both ends alike, that holds the median
    with at least this probability, from the binomial law of how many samples lie below it (Hahn
    and Meeker, Statistical Intervals, 1991, section 5.2). SciPy's `scipy.stats.quantile_test` does
    the same, but its import takes half as long as a run; a test compares the two.

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


def placement_share(rounds: Rounds) -> float | None:
    """How much of the variance lies between rounds: the intraclass correlation, at least 0.

    One-way random effects by analysis of variance, for rounds of unlike length too (Searle,
    Casella and McCulloch, Variance Components, 1992, section 3.6). None where no round has two
    repeats, or there is one round only.
    """
    sizes = np.array([len(repeats) for repeats in rounds])
    n, count = int(sizes.sum()), len(rounds)
    if count < 2 or n == count:
        return None
    means = np.array([np.mean(repeats) for repeats in rounds])
    grand = float(sizes @ means) / n
    between = float(sizes @ (means - grand) ** 2) / (count - 1)
    within = sum(
        float(np.sum((np.asarray(r) - m) ** 2)) for r, m in zip(rounds, means, strict=True)
    )
    within /= n - count
    effective = (n - float(sizes @ sizes) / n) / (count - 1)
    of_placement = max(0.0, (between - within) / effective)
    total = of_placement + within
    return of_placement / total if total > 0 else 0.0


def outliers(samples: Sequence[float]) -> int:
    """How many lie more than 1.5 interquartile ranges outside the quartiles (Tukey 1977)."""
    low, high = np.quantile(samples, (0.25, 0.75))
    reach = 1.5 * (high - low)
    return sum(not low - reach <= seconds <= high + reach for seconds in samples)
