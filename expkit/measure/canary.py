"""Does `synchronize` wait? If it does not, a time is of queueing work and not of doing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep

from expkit.contracts import Program

TRIALS = 3
LONG_STEP_S = 0.05
"""From which on one trial has to do."""
TRIAL_S = 1e-3
FETCHES = 4
"""A trial's work takes as long as reading the parameters this often, where there is room: reading
many of them is noisier than a short work is long."""
HEARINGS = 3
"""Noise does not repeat itself; a synchronize that does not wait does."""
LEFT = 0.5
"""A share of the waited time, and of reading the parameters, that cannot be noise of the latter."""


@dataclass(frozen=True)
class Canary:
    """Medians over trials, in seconds.

    Attributes:
        queued: until `advance` returned: the time without synchronize.
        waited: until `synchronize` returned after it: the time with.
        left: how much longer the parameters took to arrive then than after half of the work: what
            was not done yet although `synchronize` had returned, be it queued or never begun.
        reading: what reading the parameters takes by itself.
    """

    queued: float
    waited: float
    left: float
    reading: float

    @property
    def sings(self) -> bool:
        """Whether synchronize waits for the work."""
        return self.left <= LEFT * max(self.waited, self.reading)


def listen(
    program: Program, synchronize: Callable[[], None], step_seconds: float, room: int
) -> Canary:
    """Time steps without and with synchronize, then look whether anything was still to come.

    Where it seems so it is looked at again: another process may have come between.
    The program is reset before and after.

    Args:
        step_seconds: about what a step takes, to choose how many.
        room: the most steps between two resets.
    """
    program.params()
    synchronize()
    start = perf_counter()
    program.params()
    trial_s = max(TRIAL_S, FETCHES * (perf_counter() - start))
    n = min(room, max(2, round(trial_s / max(step_seconds, 1e-9))))
    for _ in range(HEARINGS):
        trials = TRIALS if step_seconds < LONG_STEP_S else 1
        canary = _heard(program, synchronize, n, trials)
        if canary.sings:
            break
    program.reset()
    return canary


def _heard(program: Program, synchronize: Callable[[], None], n: int, trials: int) -> Canary:
    queued, waited, left, least = [], [], [], []
    half = n // 2
    for _ in range(trials):
        enqueued, done, reading = _trial(program, synchronize, n, 0)
        # What reading itself takes, in the same state of the allocator: after a rest, which ends
        # work that goes on by itself, and after half of it, for work that waits to be asked for.
        _, _, rested = _trial(program, synchronize, n, done + reading)
        _, _, halved = _trial(program, synchronize, half, 0) if half else (0, 0, reading)
        queued.append(enqueued)
        waited.append(done)
        left.append(max(reading - rested, (reading - halved) * n / (n - half)))
        least.append(min(rested, halved))
    return Canary(median(queued), median(waited), median(left), median(least))


def _trial(
    program: Program, synchronize: Callable[[], None], n: int, rest_s: float
) -> tuple[float, float, float]:
    """Seconds until `advance` and `synchronize` had returned; then, after a rest, of reading."""
    program.reset()
    program.params()
    synchronize()
    start = perf_counter()
    program.advance(n)
    enqueued = perf_counter()
    synchronize()
    done = perf_counter()
    sleep(rest_s)
    rested = perf_counter()
    program.params()
    return enqueued - start, done - start, perf_counter() - rested
