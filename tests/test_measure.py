"""The stopping rule and the interval."""

import numpy as np
import pytest

from expkit.measure.statistics import median_interval, summarize
from expkit.measure.stopping import Measure, reason_to_stop


@pytest.mark.parametrize("n", [6, 7, 10, 25, 60])
def test_the_interval_covers_the_median_as_often_as_it_says(n: int) -> None:
    """Exponential samples, far from normal; their median is log 2."""
    rng, trials = np.random.default_rng(n), 4000
    hits = 0
    for sample in rng.exponential(size=(trials, n)):
        interval = median_interval(sample.tolist())
        assert interval is not None
        hits += interval[0] <= np.log(2) <= interval[1]
    standard_error = (0.95 * 0.05 / trials) ** 0.5
    assert hits / trials > 0.95 - 4 * standard_error


def test_the_interval_is_no_wider_than_it_must_be() -> None:
    """Table values for 95 %: ranks 1 and 6 of 6, 2 and 9 of 10, 8 and 18 of 25."""
    for n, low, high in ((6, 1, 6), (10, 2, 9), (25, 8, 18)):
        assert median_interval([float(i) for i in range(1, n + 1)]) == (low, high)


def test_too_few_samples_have_no_interval() -> None:
    for n in range(1, 6):
        assert summarize([1.0] * n).interval is None


STEADY, SPREAD = [1.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
LIMITS = Measure(repeats_min=6, repeats_max=8, budget_s=1.0, target_ci=0.1)


@pytest.mark.parametrize(
    ("samples", "elapsed", "reason"),
    [
        (STEADY[:5], 99.0, None),
        (STEADY, 0.0, "target_ci"),
        (SPREAD, 0.0, None),
        (SPREAD, 1.0, "budget_s"),
        ([*SPREAD, 1.0, 9.0], 0.0, "repeats_max"),
        ([*STEADY, 1.0], 0.0, None),
    ],
)
def test_stops_for_the_reason_it_names(
    samples: list[float], elapsed: float, reason: str | None
) -> None:
    assert reason_to_stop(LIMITS, samples, elapsed) == reason


@pytest.mark.parametrize(("count", "stops"), [(6, True), (12, True), (18, False), (24, True)])
def test_the_target_is_looked_at_after_every_doubling(count: int, stops: bool) -> None:
    limits = Measure(repeats_min=6, repeats_max=100, budget_s=1.0, target_ci=0.1)
    assert reason_to_stop(limits, [1.0] * count, 0.0) == ("target_ci" if stops else None)
