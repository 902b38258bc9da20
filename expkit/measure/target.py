"""When a run reached its target, and how long that took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from expkit.authors import first_data
from expkit.contracts import HasEvaluation, HasOptimum, HostArray, Target, Workload
from expkit.errors import UserError
from expkit.measure.statistics import Rounds


@dataclass(frozen=True)
class Goal:
    """A target of a problem.

    Attributes:
        more: whether it is reached by what is at least its value, and not at most.
        least: the problem's optimum, for a target of the gap to it.
    """

    target: Target
    more: bool
    least: float

    @classmethod
    def of(cls, target: Target, workload: Workload) -> Goal:
        """Find what a target means for a workload's problem.

        Raises:
            UserError: it is a gap to an optimum that is not known.
        """
        problem, least = workload.problem, 0.0
        if target.of == "gap" and isinstance(problem, HasOptimum):
            optimum = problem.optimum(first_data(workload))
            if optimum is None:
                takes = "another target: the lowest loss is not known with this configuration"
                raise UserError(f"target.of: got 'gap', takes {takes}")
            least = optimum.value
        figures = problem.figures if isinstance(problem, HasEvaluation) else {}
        return cls(target, figures.get(target.of) == "more", least)

    def __str__(self) -> str:
        return f"{self.target.of} of at {'least' if self.more else 'most'} {self.target.value:.6g}"

    def steps(
        self, losses: HostArray, after: Sequence[int], figures: Mapping[str, Sequence[float]]
    ) -> int | None:
        """The number of steps, at least one, after which it is reached and held; None if it is not.

        Args:
            losses: of every step. That of the first is known after one step.
            after: the numbers of steps after which the problem was evaluated.
            figures: what it came to each time, by name.
        """
        if self.of_losses:
            first = _held_from(self.met(losses))
            return None if first is None else first + 1
        first = _held_from(self.met(np.array(figures.get(self.target.of, []))))
        return None if first is None else max(1, after[first])

    @property
    def of_losses(self) -> bool:
        """Whether it is known after every step."""
        return self.target.of in ("loss", "gap")

    def met(self, values: HostArray) -> npt.NDArray[np.bool_]:
        """Which of these losses or figures reach it."""
        value = self.target.value
        if self.of_losses:
            return values <= value + self.least
        return values >= value if self.more else values <= value


class Ending:
    """Says when a run may end before its last step."""

    def __init__(self, goal: Goal) -> None:
        self._goal, self._best, self._best_after = goal, math.inf, 0

    def due(self, after: Sequence[int], values: HostArray) -> str | None:
        """Say why the run may end now; None if it goes on.

        Args:
            after: the numbers of steps after which the values that are new were known.
        """
        goal, target = self._goal, self._goal.target
        if not len(after):
            return None
        worse = -values if goal.more else values
        place = int(np.argmin(worse))
        if worse[place] < self._best:
            self._best, self._best_after = float(worse[place]), after[place]
        if target.stop and goal.met(values)[-1]:
            return "the target is reached"
        if target.patience and after[-1] - self._best_after >= target.patience:
            return f"{target.of} has not improved for {after[-1] - self._best_after} steps"
        return None


def reached(
    steps: int,
    chunk_ends: Sequence[int],
    chunk_seconds: Sequence[Sequence[float]],
    processes: Sequence[Rounds],
) -> list[list[list[float]]]:
    """When each repeat came to so many steps, by its readings of the clock: seconds from the start,
    by placement, by process.

    Between two readings steps count as equally long. Of another process only whole repeats are
    known: the same share of them counts as in this one.

    Args:
        chunk_ends: the last step of each reading.
        chunk_seconds: seconds of the readings of each repeat of the first process.
        processes: seconds of whole repeats, by placement, by process.
    """
    done = [0, *(end + 1 for end in chunk_ends)]
    until = [
        float(np.interp(steps, done, np.concatenate([[0.0], np.cumsum(seconds)])))
        for seconds in chunk_seconds
    ]
    share = median(t / sum(seconds) for t, seconds in zip(until, chunk_seconds, strict=True))
    first, *others = processes
    left = iter(until)
    own = [[next(left) for _ in repeats] for repeats in first]
    scaled = [[[share * s for s in repeats] for repeats in rounds] for rounds in others]
    return [own, *scaled]


def _held_from(good: npt.NDArray[np.bool_]) -> int | None:
    """The first place from which on all are true; None where the last is not.

    >>> _held_from(np.array([True, False, True, True]))
    2
    """
    if not good.size or not good[-1]:
        return None
    bad = np.flatnonzero(~good)
    return int(bad[-1]) + 1 if bad.size else 0
