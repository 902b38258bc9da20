"""The loss by steps and by seconds, on few points: what a chart of many runs can draw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from expkit.contracts import HostArray

Integers = npt.NDArray[np.int64]
HIGHEST = 10
"""Losses are shown up to this multiple of the first."""
POINTS = 320
"""The most points of a curve: MLflow's charts show no more, chosen for each metric by itself."""


def grid(steps: int) -> Integers:
    """Return the steps that a curve shows: dense at the start, where the loss falls most.

    Half of them are evenly spaced, half of them on a logarithmic scale.

    >>> grid(4)
    array([0, 1, 2, 3])
    >>> points = grid(2000)
    >>> int(points[0]), int(points[-1]), points.size <= POINTS
    (0, 1999, True)
    """
    if steps <= POINTS:
        return np.arange(steps, dtype=np.int64)
    half = POINTS // 2
    both = [np.linspace(0, steps - 1, half), np.geomspace(1, steps, half) - 1]
    return np.unique(np.rint(np.concatenate(both)).astype(np.int64))


def shown_steps(losses: HostArray) -> Integers:
    """Return those steps of the grid whose loss can be drawn beside those of other runs: it is
    finite, and at most ten times the first. One that diverges would hide all others.

    >>> shown_steps(np.array([2.0, 1.0, 21.0, np.inf]))
    array([0, 1])
    """
    steps = grid(losses.size)
    first = losses[np.isfinite(losses) & (losses > 0)][:1]
    highest = HIGHEST * float(first[0]) if first.size else np.inf
    return steps[np.isfinite(losses[steps]) & (losses[steps] <= highest)]


def elapsed(ends: Integers, step_seconds: HostArray, steps: int) -> HostArray:
    """Return when each step ended, in seconds; not a number where there are no times.

    Args:
        ends: the last step of each reading.
        step_seconds: the seconds of one step in each reading.
        steps: the number of steps; the result has shape (steps,).

    >>> elapsed(np.array([1, 3]), np.array([1.0, 2.0]), 4)
    array([1., 2., 4., 6.])
    """
    if not ends.size:
        return np.full(steps, np.nan)
    done = np.concatenate([[0], ends + 1])
    seconds = np.concatenate([[0.0], np.cumsum(np.diff(done) * step_seconds)])
    return np.asarray(np.interp(np.arange(1, steps + 1), done, seconds))
