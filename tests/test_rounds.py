"""Rounds of sources in turn, and the verdict on two of them."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from expkit.measure.rounds import run_rounds
from expkit.measure.stopping import Measure
from expkit.measure.verdict import CANT_TELL, FASTER, SAME, SLOWER, judge

Log = list[tuple[str, str]]
SEVERAL = Measure(repeats_min=24, repeats_max=24, repeats_per_placement=2, budget_s=99)


class Source:
    """Computes for a while and keeps how long it took, by placement."""

    def __init__(self, name: str, log: Log, *, gives: int = 10**6, size: int = 100) -> None:
        self.name, self.log, self.gives, self.size = name, log, gives, size
        self.rounds: list[list[float]] = []
        self.array = np.empty(0)

    def place(self) -> None:
        self.log.append(("place", self.name))
        self.array = np.ones(self.size)
        self.rounds.append([])

    def repeat(self) -> float | None:
        self.log.append(("repeat", self.name))
        if sum(map(len, self.rounds)) == self.gives:
            return None
        start = time.perf_counter()
        for _ in range(20):
            np.sin(self.array, out=self.array)
        self.rounds[-1].append(time.perf_counter() - start)
        return self.rounds[-1][-1]


def never() -> None:
    return None


def by_round(log: Log) -> list[tuple[list[str], list[str]]]:
    """Of each round, who was placed and who was repeated, in that order."""
    rounds: list[tuple[list[str], list[str]]] = []
    before = "repeat"
    for what, name in log:
        if what == "place" and before == "repeat":
            rounds.append(([], []))
        rounds[-1][what == "repeat"].append(name)
        before = what
    return rounds


# The order


def test_two_sources_run_a_b_b_a_and_are_placed_for_every_round() -> None:
    log: Log = []
    a, b = Source("A", log), Source("B", log)
    assert run_rounds([a, b], SEVERAL, never) == "repeats_max"
    rounds = by_round(log)
    assert len(rounds) == 12
    for placed, repeated in rounds:
        assert sorted(placed) == ["A", "B"]
        assert "".join(repeated) in ("ABBA", "BAAB")
    for source in (a, b):
        assert [len(repeats) for repeats in source.rounds] == [2] * 12


def test_who_goes_first_is_drawn_for_every_round() -> None:
    log: Log = []
    measure = Measure(repeats_min=400, repeats_max=400, budget_s=99)
    run_rounds([Source("A", log, size=1), Source("B", log, size=1)], measure, never)
    first = [repeated[0] for _, repeated in by_round(log)]
    assert len(first) == 200
    assert 60 <= first.count("A") <= 140, "10 standard deviations of a fair draw"
    changes = sum(one != next_one for one, next_one in pairwise(first))
    assert 60 <= changes <= 140, "neither always the same nor always in turn"


def test_three_sources_run_there_and_back() -> None:
    log: Log = []
    run_rounds([Source(name, log) for name in "ABC"], SEVERAL, never)
    orders: Counter[str] = Counter()
    for placed, repeated in by_round(log):
        assert sorted(placed) == ["A", "B", "C"]
        assert repeated[3:] == repeated[2::-1]
        orders["".join(repeated[:3])] += 1
    assert len(orders) > 1


def test_one_source_is_placed_for_every_round_too() -> None:
    log: Log = []
    source = Source("A", log)
    measure = Measure(repeats_min=15, repeats_max=15, repeats_per_placement=4, budget_s=99)
    assert run_rounds([source], measure, never) == "repeats_max"
    assert [len(repeats) for repeats in source.rounds] == [4, 4, 4, 3]
    assert log.count(("place", "A")) == 4


# The end


@pytest.mark.parametrize("gives", [0, 1, 2, 5])
def test_who_has_no_more_to_give_drops_out_and_the_others_go_on(gives: int) -> None:
    log: Log = []
    short, a, b = Source("short", log, gives=gives), Source("A", log), Source("B", log)
    assert run_rounds([a, short, b], SEVERAL, never) == "repeats_max"
    assert sum(map(len, short.rounds)) == gives
    assert log.count(("repeat", "short")) == gives + 1, "not asked again"
    assert [len(r) for r in a.rounds] == [len(r) for r in b.rounds] == [2] * 12
    after = [set(placed) for placed, _ in by_round(log)][gives // 2 + 1 :]
    assert after
    assert all(placed == {"A", "B"} for placed in after)


def test_nothing_is_waited_for_when_none_is_left() -> None:
    log: Log = []
    assert (
        run_rounds([Source("A", log, gives=3), Source("B", log, gives=5)], SEVERAL, never) is None
    )
    assert run_rounds([], SEVERAL, never) is None


def test_it_ends_with_the_first_look_at_which_enough_is_known() -> None:
    log: Log = []
    source, looks = Source("A", log), []

    def at_third_look() -> str | None:
        looks.append(len(source.rounds))
        return "known" if len(looks) == 3 else None

    measure = Measure(repeats_min=6, repeats_max=999, repeats_per_placement=2, budget_s=99)
    assert run_rounds([source], measure, at_third_look) == "known"
    assert looks == [3, 6, 12]
    assert len(source.rounds) == 12


def test_a_budget_that_is_spent_ends_it_after_the_least_number_of_repeats() -> None:
    source = Source("A", [])
    measure = Measure(repeats_min=7, repeats_max=999, repeats_per_placement=2, budget_s=0)
    assert run_rounds([source], measure, never) == "budget_s"
    assert sum(map(len, source.rounds)) == 7


# The verdict

Pair = tuple[list[list[float]], list[list[float]]]


def simulated(
    rng: np.random.Generator, rounds: int, ratio: float, placement: float, noise: float
) -> Pair:
    """Two sources, each placed anew for each of the rounds; what drifts is in both alike."""
    drift = np.exp(0.05 * np.cumsum(rng.standard_normal((rounds, 1)), axis=0))
    sides = []
    for middle in (1.0, ratio):
        placed = np.exp(placement * rng.standard_normal((rounds, 1)))
        own = np.exp(noise * rng.standard_normal((rounds, 2)))
        sides.append((middle * drift * placed * own).tolist())
    return sides[0], sides[1]


def words(trials: int, rounds: int, ratio: float, placement: float, noise: float) -> Counter[str]:
    """What is said of as many trials."""
    rng = np.random.default_rng(11)
    pairs = (simulated(rng, rounds, ratio, placement, noise) for _ in range(trials))
    return Counter(judge(*pair, threshold=0.02).word for pair in pairs)


@pytest.mark.parametrize("placement", [0.0, 0.01, 0.03, 0.05])
@pytest.mark.parametrize("rounds", [6, 10, 30])
def test_a_thing_is_not_faster_than_itself(rounds: int, placement: float) -> None:
    """Although each round of either lies elsewhere: in at most 1 of 100 trials."""
    trials = 2000
    found = words(trials, rounds, 1.0, placement, noise=0.01)
    wrong = found[FASTER] + found[SLOWER]
    assert wrong / trials <= 0.01 + 3 * (0.01 * 0.99 / trials) ** 0.5


@pytest.mark.parametrize("placement", [0.02, 0.05])
def test_looking_again_and_again_makes_nothing_faster_than_itself(placement: float) -> None:
    """As `run_rounds` does: at 10, 20, 40, 80 rounds, and at the end."""
    rng, trials, wrong = np.random.default_rng(12), 1500, 0
    for _ in range(trials):
        a, b = simulated(rng, 100, 1.0, placement, 0.01)
        said = (judge(a[:n], b[:n], 0.02).word for n in (10, 20, 40, 80, 100))
        wrong += next((word for word in said if word != CANT_TELL), CANT_TELL) in (FASTER, SLOWER)
    assert wrong / trials <= 0.01 + 3 * (0.01 * 0.99 / trials) ** 0.5


@pytest.mark.parametrize(("ratio", "word"), [(1.1, SLOWER), (1 / 1.1, FASTER), (1.0, SAME)])
@pytest.mark.parametrize("rounds", [6, 12])
def test_what_is_there_is_found_where_the_noise_is_small(
    rounds: int, ratio: float, word: str
) -> None:
    found = words(500, rounds, ratio, placement=0.003, noise=0.003)
    assert found[word] / 500 > 0.9 if word == SAME else found[word] == 500


def test_what_lies_at_the_threshold_cannot_be_told() -> None:
    found = words(500, 12, 1.02, placement=0.01, noise=0.005)
    assert found[CANT_TELL] / 500 > 0.9


@pytest.mark.parametrize("ratio", [1.3, 1 / 1.3])
def test_the_interval_holds_the_ratio(ratio: float) -> None:
    rng, trials, hits = np.random.default_rng(13), 2000, 0
    for _ in range(trials):
        found = judge(*simulated(rng, 10, ratio, 0.05, 0.01), threshold=0.02)
        assert found.interval is not None
        assert found.interval[0] <= found.ratio <= found.interval[1]
        hits += found.interval[0] <= ratio <= found.interval[1]
    assert hits / trials > 0.95 - 4 * (0.95 * 0.05 / trials) ** 0.5


def test_few_rounds_cannot_tell_however_many_repeats_they_have() -> None:
    for rounds in range(1, 6):
        found = judge([[1.0] * 100] * rounds, [[9.0] * 100] * rounds, 0.02)
        assert (found.word, found.interval, found.rounds) == (CANT_TELL, None, rounds)
        assert found.ratio == pytest.approx(9)


def test_turned_around_it_says_the_opposite() -> None:
    opposite = {FASTER: SLOWER, SLOWER: FASTER, SAME: SAME, CANT_TELL: CANT_TELL}
    rng, seen = np.random.default_rng(14), set()
    for ratio in (0.9, 0.98, 1.0, 1.02, 1.1):
        for _ in range(20):
            a, b = simulated(rng, 9, ratio, 0.005, 0.005)
            there, back = judge(a, b, 0.02), judge(b, a, 0.02)
            assert back.word == opposite[there.word]
            assert back.ratio == pytest.approx(1 / there.ratio)
            seen.add(there.word)
    assert seen == set(opposite)
