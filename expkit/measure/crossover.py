"""A search for the size, or another number, at which one of two overtakes the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

from expkit.measure.verdict import FASTER, SLOWER

GRID = 5
"""How many values are measured first, from one end of the range to the other."""
MOST = 16
"""The most values that are measured."""
NEAR = 1.1
"""Two values whose ratio is at most this are not divided further."""


@dataclass(frozen=True)
class Point:
    """What was measured at one value.

    Attributes:
        at: the value.
        ratio: B's time over A's.
        word: the verdict on B.
    """

    at: float
    ratio: float
    word: str

    @property
    def side(self) -> int:
        """-1 where B is faster, 1 where A is, 0 where they are the same or that cannot be told."""
        return {FASTER: -1, SLOWER: 1}.get(self.word, 0)


@dataclass(frozen=True)
class Crossing:
    """Where one overtakes the other.

    Attributes:
        at: the value, interpolated between those that were measured.
        below, above: the nearest values at which it can be told which is faster.
    """

    at: float
    below: Point
    above: Point


def search(
    measure: Callable[[float], Point], low: float, high: float, *, whole: bool
) -> list[Point]:
    """Measure where it tells most: over the range first, then around the first crossing.

    Args:
        measure: measures both at a value.
        low, high: the ends of the range, above 0.
        whole: whether values are whole numbers.

    Returns:
        What was measured, by rising value.
    """
    step = log(high / low) / (GRID - 1)
    grid = [_rounded(low * exp(step * number), whole) for number in range(GRID)]
    points = [measure(at) for at in dict.fromkeys(grid)]
    while len(points) < MOST and (at := _next(points, whole)) is not None:
        points.append(measure(at))
        points.sort(key=lambda point: point.at)
    return points


def crossings(points: Sequence[Point]) -> list[Crossing]:
    """Return every crossing between values at which it can be told which is faster."""
    clear = [point for point in points if point.side]
    return [
        Crossing(_between([p for p in points if below.at <= p.at <= above.at]), below, above)
        for below, above in pairwise(clear)
        if below.side != above.side
    ]


def _next(points: Sequence[Point], whole: bool) -> float | None:
    """Return the value to measure next; None where the first crossing is narrow enough."""
    found = crossings(points)
    if not found:
        return None
    inside = [p.at for p in points if found[0].below.at <= p.at <= found[0].above.at]
    # Where it cannot be told which is faster, the edges of that region are looked for.
    gaps = {(inside[0], inside[1]), (inside[-2], inside[-1])}
    for left, right in sorted(gaps, key=lambda gap: gap[0] / gap[1]):
        middle = _rounded((left * right) ** 0.5, whole)
        if right > NEAR * left and left < middle < right:
            return middle
    return None


def _between(points: Sequence[Point]) -> float:
    """Interpolate where the ratio is 1, on logarithmic scales; the ends differ in side."""
    for left, right in pairwise(points):
        a, b = log(left.ratio), log(right.ratio)
        if a * b <= 0 and a != b:
            return float(left.at * (right.at / left.at) ** (a / (a - b)))
    return float((points[0].at * points[-1].at) ** 0.5)


def _rounded(value: float, whole: bool) -> float:
    return round(value) if whole else float(f"{value:.6g}")
