"""Does `synchronize` wait? If it does not, a time is of queueing work and not of doing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from expkit.contracts import Program

TRIALS = 3
TRIAL_S = 1e-3
LEFT = 0.2
"""A share of the waited time that cannot be the noise of reading the parameters twice."""


@dataclass(frozen=True)
class Canary:
    """Medians over trials, in seconds.

    Attributes:
        queued: until `advance` returned: the time without synchronize.
        waited: until `synchronize` returned after it: the time with.
        left: how much longer the parameters took to arrive then than when read again: work that
            was not done yet although `synchronize` had returned.
    """

    queued: float
    waited: float
    left: float

    @property
    def sings(self) -> bool:
        """Whether synchronize waits for the work."""
        return self.left <= LEFT * self.waited


def listen(
    program: Program, synchronize: Callable[[], None], step_seconds: float, room: int
) -> Canary:
    """Time steps without and with synchronize, then look whether anything was still to come.

    The program is reset before and after.

    Args:
        step_seconds: about what a step takes, to choose how many.
        room: the most steps between two resets.
    """
    n = min(room, max(1, round(TRIAL_S / max(step_seconds, 1e-9))))
    queued, waited, left = [], [], []
    for _ in range(TRIALS):
        program.reset()
        program.params()
        synchronize()
        start = perf_counter()
        program.advance(n)
        enqueued = perf_counter()
        synchronize()
        done = perf_counter()
        program.params()
        arrived = perf_counter()
        program.params()
        again = perf_counter()
        queued.append(enqueued - start)
        waited.append(done - start)
        left.append((arrived - done) - (again - arrived))
    program.reset()
    return Canary(median(queued), median(waited), median(left))
