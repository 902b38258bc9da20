"""Where the time of a step goes, from a pass of its own that is never the timed one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np

from expkit.contracts import HostArray, Mark, Program
from expkit.measure.clock import laps

TRACED_S = 0.1
"""About how long the traced steps take together."""
TRIED_S = 0.5
"""How long to trace again, where the parts do not add up: others may have come between."""
ADDS_UP = 0.2
"""The share of the timed step that may be missing from its parts, or too much in them."""
FAR = 10
"""From so many times the timed step on, no further try would make the parts add up."""
GIVEN_UP_S = 1.0
"""About how long to trace at most where they are so far off."""
PREFIX, SUFFIX = "parts/", "_seconds"
"""Of a part's metric."""
UNATTRIBUTED, PLACING, FETCHING = "unattributed", "placing", "fetching"
BESIDE = (UNATTRIBUTED, PLACING, FETCHING)
"""What is recorded like a part and is none of a step's."""
STEPS_MIN = 3
MARKS = 1000
"""How many marks with nothing between them tell what one costs."""


@dataclass(frozen=True)
class Breakdown:
    """A step in parts, and what is done once.

    Attributes:
        parts: seconds of a step by part, as `Mark` names them, less what the marks cost.
        step_seconds: of the timed pass, which has no marks.
        steps: how many were traced.
        marks: of one step.
        mark_seconds: what one costs.
        placing_seconds: of `reallocate`: making and placing data, first parameters and state. A
            captured graph is bound to its memory, so capturing it is in here.
        fetching_seconds: of the traced steps' losses; None where there are none.
        unmarked: what is wrong with the marks, where no parts can be told from them.
    """

    parts: dict[str, float]
    step_seconds: float
    steps: int
    marks: int
    mark_seconds: float
    placing_seconds: float
    fetching_seconds: float | None
    unmarked: str = ""

    @property
    def unattributed(self) -> float:
        """Seconds of a timed step that no part accounts for.

        Above zero: the loop around the parts, and what went on beside the timed pass alone.
        Below zero where the parts take longer than the step they are of: waiting for the device
        at every mark ends what overlaps, a captured graph is traced call by call, and a mark costs
        a little more between real work than in the loop that tells its cost.
        """
        return self.step_seconds - sum(self.parts.values())

    @property
    def adds_up(self) -> bool:
        """Whether the parts come to the timed step, within a fifth: else they do not explain it."""
        return abs(self.unattributed) <= ADDS_UP * self.step_seconds

    @property
    def divides(self) -> bool:
        """Whether there are parts: a step that is a single one has its time already."""
        return set(self.parts) != {"step"}

    @property
    def traced_seconds(self) -> float:
        """About what a step takes while it is traced, marks and all."""
        return sum(self.parts.values()) + self.marks * self.mark_seconds

    @property
    def is_far(self) -> bool:
        """Whether the parts take many times as long as the timed step."""
        return sum(self.parts.values()) > FAR * self.step_seconds

    def metrics(self) -> dict[str, float]:
        """By the name to log it under; none where the parts do not add up, or are one alone."""
        if not self.adds_up or not self.divides:
            return {}
        shown = {**self.parts, UNATTRIBUTED: self.unattributed, PLACING: self.placing_seconds}
        if self.fetching_seconds is not None:
            shown[FETCHING] = self.fetching_seconds
        return {f"{PREFIX}{name.replace(' ', '_')}{SUFFIX}": s for name, s in shown.items()}


def breakdown(
    program: Program,
    synchronize: Callable[[], None],
    steps: int,
    step_seconds: float,
    every: int = 1,
) -> Breakdown:
    """Trace some steps of a program that has been timed. Leaves it reset, in other memory.

    The timed step is the median over readings of the mean of a reading's steps, so the parts are
    those of traced stretches, each as long as a reading, from the middle third by their total.
    (Medians over single steps leave out what strikes one in ten: up to half of a PyTorch step.)

    Args:
        synchronize: the backend's.
        steps: the most that the program has room for.
        step_seconds: what one takes in the timed pass.
        every: steps of a reading there.
    """
    mark_seconds = float(np.median([s for _, s in laps(_only_mark, synchronize)]))
    placing_seconds = _once(program.reallocate, synchronize)
    started = perf_counter()

    def parted(names: list[str], seconds: HostArray, n: int) -> Breakdown:
        parts = {}
        for part in dict.fromkeys(names):
            own = [index for index, name in enumerate(names) if name == part]
            parts[part] = max(0.0, float(seconds[own].sum()) - len(own) * mark_seconds)
        fetching_seconds = _once(program.losses, synchronize)
        return Breakdown(
            parts,
            step_seconds,
            n,
            len(names),
            mark_seconds,
            placing_seconds,
            fetching_seconds if program.losses().size > 0 else None,
        )

    def unmarked(marks: int, n: int) -> Breakdown:
        told = "1 step" if n == 1 else f"{n} steps"
        what = f"trace() made {marks} marks in {told}, takes the same ones in every step"
        return Breakdown({}, step_seconds, n, 0, mark_seconds, placing_seconds, None, what)

    def traced(n: int) -> Breakdown:
        program.reset()
        seen = laps(partial(program.trace, n), synchronize)
        names = [name for name, _ in seen]
        if not names or names != n * names[: len(names) // n]:
            return unmarked(len(names), n)
        names, seconds = _by_step(seen, n)
        return parted(names, _middle(seconds, every), n)

    # The first may take long: it may compile what it traces, or take a fused step apart.
    most = max(GIVEN_UP_S, FAR * step_seconds)
    # So it is tried twice: a second at which nothing goes on, as on a shared machine, also ends it.
    for _ in range(2):
        seen = laps(partial(program.trace, 1), synchronize, most)
        stopped = sum(s for _, s in seen) > most
        if not stopped:
            break
        program.reallocate()  # in the middle of a step it may be in any state
    found = parted([name for name, _ in seen], np.array([s for _, s in seen]), 1)
    if stopped:
        return found
    if not seen:
        program.reset()
        return unmarked(0, 1)
    if not (found.adds_up and found.traced_seconds > TRACED_S):
        long = found.is_far and STEPS_MIN * found.traced_seconds > GIVEN_UP_S
        found = traced(1 if long else min(steps, STEPS_MIN))
    n = min(steps, max(STEPS_MIN, round(TRACED_S / max(found.traced_seconds, 1e-9))))
    if found.is_far and n * found.traced_seconds > GIVEN_UP_S:
        n = found.steps
    while not found.unmarked and (
        found.steps < n or not (found.adds_up or found.is_far or perf_counter() - started > TRIED_S)
    ):
        found = traced(n)
    program.reset()
    return found


def _middle(seconds: HostArray, every: int) -> HostArray:
    """Of each mark, the mean seconds in the middle third of the stretches of steps, by their total.

    Three stretches at least, where there are as many steps: the first may be a slow one.
    """
    steps = len(seconds)
    length = max(1, min(every, steps // STEPS_MIN))
    stretches = seconds[: steps // length * length].reshape(-1, length, seconds.shape[1])
    means: HostArray = stretches.mean(axis=1)
    third = len(means) // 3
    order = np.argsort(means.sum(axis=1), kind="stable")[third : len(means) - third]
    middle: HostArray = means[order].mean(axis=0)
    return middle


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
