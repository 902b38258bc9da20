"""Verdicts: which of two is faster, or that one cannot tell, or that they do different work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import median
from typing import Protocol

from expkit.measure import parity
from expkit.measure.statistics import Rounds, median_interval

FASTER, SLOWER, SAME, CANT_TELL = "FASTER", "SLOWER", "SAME", "CAN'T TELL"
UNLIKE = "UNLIKE"


@dataclass(frozen=True)
class Verdict:
    """What rounds of two interleaved sources, A and B, say about B.

    Attributes:
        word: FASTER, SLOWER, SAME or CAN'T TELL, for B compared with A; UNLIKE where they do not do
            the same work, whatever the ratio.
        ratio: B's time over A's, the median over rounds.
        interval: its 95 % confidence interval; None for fewer than 6 rounds.
        rounds: how many there were.
        target: what the times lead to; empty where they are those of whole runs.
        bound: `at least` or `at most`, where one of the two has not reached the target: its time to
            it is then longer than its whole run.
    """

    word: str
    ratio: float
    interval: tuple[float, float] | None
    rounds: int
    target: str = ""
    bound: str = ""

    @property
    def times(self) -> str:
        """The ratio in words: `0.512 times`, `at least 2.1 times`."""
        return f"{self.bound} {self.ratio:.3f} times".lstrip()


class Side(parity.Worked, Protocol):
    """One of two that are compared: what it worked with, and how long that took."""

    @property
    def rounds(self) -> Rounds:
        """Seconds of whole repeats."""
        ...

    @property
    def until_target(self) -> Rounds:
        """Seconds of the same repeats until the target; empty where it was not reached."""
        ...


def held(a: Side, b: Side, threshold: float) -> Verdict:
    """Compare B with A, by the one rule that holds wherever two are compared.

    Only the same work can be faster or slower. Two that learn the same with different optimizers,
    and have the same target, are compared by the time until they reach it. Where the work differs
    otherwise, the ratio is still given, and the word is UNLIKE.

    Args:
        a, b: measured in turn. Rounds that only one of them has are left out.
    """
    common = min(len(a.rounds), len(b.rounds))
    whole = a.rounds[:common], b.rounds[:common]
    if not parity.unlike(a, b):
        return judge(*whole, threshold)
    target = None if a.broken or b.broken else parity.target(a.facts, b.facts)
    if target is None or not (a.until_target or b.until_target):
        return replace(judge(*whole, threshold), word=UNLIKE)
    until = a.until_target[:common], b.until_target[:common]
    found = judge(until[0] or whole[0], until[1] or whole[1], threshold)
    if all(until):
        return replace(found, target=target)
    right, bound = (FASTER, "at most") if until[1] else (SLOWER, "at least")
    word = right if found.word == right else CANT_TELL
    return replace(found, word=word, target=target, bound=bound)


def judge(a: Rounds, b: Rounds, threshold: float) -> Verdict:
    """Compare the times of B with those of A, round by round; both must have the same rounds.

    A round's ratio is that of its medians; the interval of their median assumes no distribution.
    With the whole interval beyond 1 + threshold (or its inverse) B is slower (faster) by more than
    the threshold; with all of it within, both are practically the same (two one-sided tests:
    Schuirmann 1987); in any other case one cannot tell, or not yet.

    >>> judge([[1.0]] * 6, [[1.5]] * 6, 0.02).word
    'SLOWER'
    >>> judge([[1.0]] * 6, [[1.01]] * 6, 0.02).word
    'SAME'
    >>> judge([[1.0]] * 5, [[1.5]] * 5, 0.02).word
    "CAN'T TELL"
    """
    ratios = log_ratios(a, b)
    found = median_interval(ratios)
    middle = exp(median(ratios))
    if found is None:
        return Verdict(CANT_TELL, middle, None, len(ratios))
    low, high = found
    word = word_of(low, high, threshold)
    return Verdict(word, middle, (exp(low), exp(high)), len(ratios))


def word_of(low: float, high: float, threshold: float) -> str:
    """The verdict on a ratio whose logarithm lies between these."""
    edge = log(1 + threshold)
    if low > edge:
        return SLOWER
    if high < -edge:
        return FASTER
    return SAME if -edge <= low and high <= edge else CANT_TELL


def log_ratios(a: Rounds, b: Rounds) -> Sequence[float]:
    """For each round, the logarithm of B's median over A's."""
    return [log(median(y) / median(x)) for x, y in zip(a, b, strict=True)]
