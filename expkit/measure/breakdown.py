"""Where the time of a step goes, from a pass of its own that is never the timed one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from expkit.contracts import HostArray, Mark, Program
from expkit.measure.clock import laps

TRACED_S = 0.05
"""About how long the traced steps take together."""
STEPS_MIN = 3
MARKS = 1000
"""How many marks with nothing between them tell what one costs."""


@dataclass(frozen=True)
class Breakdown:
    """A step in parts, and what is done once.

    Attributes:
        parts: median seconds a step by part, as `Mark` names them, less what the marks cost.
        step_seconds: of the timed pass, which has no marks.
        steps: how many were traced.
        marks: of one step.
        mark_seconds: what one costs.
        placing_seconds: of `reallocate`: making and placing data, first parameters and state. A
            captured graph is bound to its memory, so capturing it is in here.
        fetching_seconds: of the traced steps' losses; None where there are none.
    """

    parts: dict[str, float]
    step_seconds: float
    steps: int
    marks: int
    mark_seconds: float
    placing_seconds: float
    fetching_seconds: float | None

    @property
    def unattributed(self) -> float:
        """Seconds of a timed step that no part accounts for.

        Above zero: the loop around the parts, and what strikes some steps only, such as another
        process on the same core: the step is a mean over steps, the parts are medians.
        Below zero where the parts take longer than the step they are of: waiting for the device
        at every mark ends what overlaps, a captured graph is traced call by call, and a mark costs
        a little more between real work than in the loop that tells its cost.
        """
        return self.step_seconds - sum(self.parts.values())

    def metrics(self) -> dict[str, float]:
        """By the name to log it under."""
        shown = {**self.parts, "unattributed": self.unattributed, "placing": self.placing_seconds}
        if self.fetching_seconds is not None:
            shown["fetching"] = self.fetching_seconds
        return {f"parts/{name.replace(' ', '_')}_seconds": s for name, s in shown.items()}


def breakdown(
    program: Program, synchronize: Callable[[], None], steps: int, step_seconds: float
) -> Breakdown:
    """Trace some steps of a program that has been timed. Leaves it reset, in other memory.

    Args:
        synchronize: the backend's.
        steps: the most that the program has room for.
        step_seconds: what one takes in the timed pass.
    """
    mark_seconds = float(np.median([s for _, s in laps(_only_mark, synchronize)]))
    placing_seconds = _once(program.reallocate, synchronize)
    few = min(steps, STEPS_MIN)
    _, seconds = _by_step(laps(partial(program.trace, few), synchronize), few)
    traced = min(steps, max(few, round(TRACED_S / float(np.median(seconds.sum(axis=1))))))
    program.reset()
    names, seconds = _by_step(laps(partial(program.trace, traced), synchronize), traced)
    fetching_seconds = _once(program.losses, synchronize)
    learns = program.losses().size > 0
    program.reset()
    parts = {}
    for part in dict.fromkeys(names):
        own = [index for index, name in enumerate(names) if name == part]
        median = float(np.median(seconds[:, own].sum(axis=1)))
        parts[part] = max(0.0, median - len(own) * mark_seconds)
    return Breakdown(
        parts,
        step_seconds,
        traced,
        len(names),
        mark_seconds,
        placing_seconds,
        fetching_seconds if learns else None,
    )


def _only_mark(mark: Mark) -> None:
    for _ in range(MARKS):
        mark("")


def _once(work: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Seconds that this takes."""

    def whole(mark: Mark) -> None:
        work()
        mark("")

    [(_, seconds)] = laps(whole, synchronize)
    return seconds


def _by_step(found: list[tuple[str, float]], steps: int) -> tuple[list[str], HostArray]:
    """The marks of one step, and the seconds before each, of shape (steps, marks)."""
    seconds = np.array([s for _, s in found]).reshape(steps, -1)
    return [name for name, _ in found[: seconds.shape[1]]], seconds
