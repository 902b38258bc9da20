"""What repeats say: intervals, shares, outliers, and when a measurement is not to be leaned on."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from expkit.measure.environment import Activity
from expkit.measure.stability import drift, two_modes, unstable_because
from expkit.measure.statistics import (
    median_interval,
    outliers,
    placement_share,
    summarize,
)
from expkit.measure.stopping import Measure

Draw = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[np.float64]]
HUMPS: dict[str, Draw] = {
    "normal": lambda rng, shape: 1 + 0.05 * rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.uniform(0.9, 1.1, shape),
    "exponential": lambda rng, shape: 1 + 0.1 * rng.exponential(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(0, 0.3, shape),
}


# The interval


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 8, 9, 11, 17, 40, 99, 200])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_interval_is_scipys(n: int, confidence: float) -> None:
    samples = np.random.default_rng(n).exponential(size=n)
    theirs = stats.quantile_test(samples).confidence_interval(confidence)
    expected = (theirs.low, theirs.high)
    ours = median_interval(samples.tolist(), confidence)
    assert ours == (None if np.isnan(expected).any() else expected)


@pytest.mark.parametrize("n", [6, 7, 10, 25, 60])
@pytest.mark.parametrize("hump", HUMPS)
def test_the_interval_holds_the_median_as_often_as_it_says(n: int, hump: str) -> None:
    rng, trials = np.random.default_rng(n), 3000
    truth = median(HUMPS[hump](np.random.default_rng(1), (400_001,)))
    hits = 0
    for sample in HUMPS[hump](rng, (trials, n)):
        interval = median_interval(sample.tolist())
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    standard_error = (0.95 * 0.05 / trials) ** 0.5
    assert hits / trials > 0.95 - 4 * standard_error


def test_the_interval_is_no_wider_than_it_must_be() -> None:
    """Table values for 95 %: ranks 1 and 6 of 6, 2 and 9 of 10, 8 and 18 of 25."""
    for n, low, high in ((6, 1, 6), (10, 2, 9), (25, 8, 18)):
        assert median_interval([float(i) for i in range(1, n + 1)]) == (low, high)


# Repeats in rounds


def nested(
    rng: np.random.Generator, rounds: int, per: int, share: float, spread: float = 0.05
) -> list[list[float]]:
    """Repeats with this share of their variance between rounds."""
    placed = (share**0.5) * rng.standard_normal((rounds, 1))
    own = ((1 - share) ** 0.5) * rng.standard_normal((rounds, per))
    found: list[list[float]] = (1 + spread * (placed + own)).tolist()
    return found


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_the_interval_holds_the_median_however_much_is_placement(share: float) -> None:
    """Fifty repeats of ten rounds are ten independent values and not fifty."""
    rng, trials = np.random.default_rng(7), 2000
    hits = 0
    for _ in range(trials):
        found = summarize(nested(rng, 10, 5, share))
        assert found.interval == (found.low, found.high)
        hits += found.low <= 1 <= found.high
    assert hits / trials > 0.95 - 4 * (0.95 * 0.05 / trials) ** 0.5


def test_more_repeats_of_few_rounds_are_no_interval() -> None:
    for rounds in range(1, 6):
        found = summarize([[1.0, 1.1, 1.2] * 10] * rounds)
        assert found.interval is None
        assert (found.repeats, found.rounds) == (30 * rounds, rounds)
    assert summarize([[1.0]] * 6).interval == (1.0, 1.0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("unlike", [False, True], ids=["alike", "last round shorter"])
def test_the_placement_share_is_the_simulated_one(share: float, unlike: bool) -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(300):
        rounds = nested(rng, 40, 3, share)
        if unlike:
            rounds = [repeats[: 1 + index % 3] for index, repeats in enumerate(rounds)]
        one = placement_share(rounds)
        assert one is not None
        assert 0 <= one <= 1
        found.append(one)
    assert median(found) == pytest.approx(share, abs=0.05)


def test_without_two_repeats_in_a_round_no_share_can_be_told() -> None:
    assert placement_share([[1.0], [2.0], [3.0]]) is None
    assert placement_share([[1.0, 2.0]]) is None
    assert placement_share([[1.0, 2.0], [3.0]]) is not None


def test_a_share_is_the_same_in_any_unit() -> None:
    rounds = nested(np.random.default_rng(0), 8, 2, 0.5)
    milli = [[1e-6 * seconds for seconds in repeats] for repeats in rounds]
    assert placement_share(milli) == pytest.approx(placement_share(rounds))


def test_outliers_are_counted_and_stay_in_every_figure() -> None:
    rounds = [[1.0 + 0.01 * i, 1.005 + 0.01 * i] for i in range(8)]
    before = summarize(rounds)
    assert (before.outliers, before.repeats) == (0, 16)
    after = summarize([*rounds[:7], [50.0, 100.0]])
    assert (after.outliers, after.repeats, after.rounds) == (2, 16, 8)
    assert after.high == 75.0, "the round with them is the greatest"
    assert after.worst == pytest.approx(100 / after.median)
    assert outliers([1.0, 2.0, 3.0, 4.0, -9.0]) == 1, "one that is too fast is one too"


# Whether it may be leaned on


@pytest.mark.parametrize("hump", HUMPS)
@pytest.mark.parametrize("n", [12, 20, 40])
def test_a_steady_sample_of_one_hump_raises_no_alarm(n: int, hump: str) -> None:
    rng, trials = np.random.default_rng(n), 1000
    samples = HUMPS[hump](rng, (trials, n)).tolist()
    most = 0.02 + 3 * (0.02 * 0.98 / trials) ** 0.5
    assert np.mean([drift(sample) is not None for sample in samples]) <= most
    assert np.mean([two_modes(sample) is not None for sample in samples]) <= most


@pytest.mark.parametrize("rounds", [6, 10, 20])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_placement_is_no_drift(rounds: int, share: float) -> None:
    """Repeats of one round resemble each other; rounds follow each other in no order."""
    rng, trials = np.random.default_rng(rounds), 1000
    alarms = 0
    for _ in range(trials):
        alarms += any(reason.startswith("drift") for reason in told(nested(rng, rounds, 2, share)))
    assert alarms / trials <= 0.02 + 3 * (0.02 * 0.98 / trials) ** 0.5


@pytest.mark.parametrize("n", [12, 20, 60])
@pytest.mark.parametrize("change", [0.1, -0.1])
def test_a_drift_is_found_with_its_sign_and_size(n: int, change: float) -> None:
    rng = np.random.default_rng(n)
    noise = 0.005 * rng.standard_normal(n)
    found = drift((1 + change * np.linspace(-0.5, 0.5, n) + noise).tolist())
    assert found == pytest.approx(change, rel=0.25)


def test_a_drift_that_does_not_matter_is_none() -> None:
    assert drift(np.linspace(1, 1.019, 50).tolist()) is None
    assert drift(np.linspace(1, 1.021, 50).tolist()) is not None


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_two_gathering_points_are_found(n: int, part: float) -> None:
    rng = np.random.default_rng(n)
    count = round(part * n)
    samples = np.concatenate([np.full(count, 1.0), np.full(n - count, 1.2)])
    found = two_modes(rng.permutation(samples + 0.005 * rng.standard_normal(n)).tolist())
    assert found is not None
    assert found == pytest.approx((1.0, 1.2), rel=0.01)


def told(rounds: list[list[float]], **activity: float) -> list[str]:
    """The reasons given for these rounds, with this going on beside them."""
    nothing = {"others_cores": 0.0, "steal_share": 0.0, "frequency_change": 0.0}
    beside = Activity(**(nothing | activity))
    return unstable_because(Measure(), summarize(rounds), rounds, beside)


STEADY = nested(np.random.default_rng(5), 14, 2, 0.5, spread=0.005)


def test_a_steady_measurement_is_stable() -> None:
    assert told(STEADY) == []


@pytest.mark.parametrize(
    ("word", "rounds", "beside"),
    [
        ("too few", STEADY[:5], {}),
        ("wide", nested(np.random.default_rng(5), 10, 2, 0.5, spread=0.3), {}),
        ("drift", [[s * (1 + 0.02 * i) for s in r] for i, r in enumerate(STEADY)], {}),
        ("bimodal", [[s * (1 + 0.2 * (i % 2)) for s in r] for i, r in enumerate(STEADY)], {}),
        ("load", STEADY, {"others_cores": 1.0}),
        ("load", STEADY, {"steal_share": 0.1}),
        ("frequency", STEADY, {"frequency_change": -0.2}),
        ("frequency", STEADY, {"frequency_change": 0.2}),
    ],
)
def test_an_unstable_measurement_says_why(
    word: str, rounds: list[list[float]], beside: dict[str, float]
) -> None:
    reasons = told(rounds, **beside)
    assert word in [reason.partition(":")[0] for reason in reasons]
