"""Where the time of a step goes, measured in a pass of its own that is never the timed one."""

from __future__ import annotations

import math
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
"""How long to try again where the parts do not add up: other processes may have interfered."""
ADDS_UP = 0.2
"""The share of the timed step by which the sum of its parts may differ from it."""
FAR = 10
"""Parts that take more than this many times the timed step will not add up in any further try."""
GIVEN_UP_S = 1.0
"""About the longest time to trace where the parts are so far off."""
PREFIX, SUFFIX = "parts/", "_seconds"
"""What the name of a part's metric begins and ends with."""
UNATTRIBUTED, PLACING, FETCHING = "unattributed", "placing", "fetching"
BESIDE = (UNATTRIBUTED, PLACING, FETCHING)
"""Figures that are recorded like parts but are not parts of a step."""
STEPS_MIN = 3
MARKS = 1000
"""The number of marks, with nothing between them, from which the cost of one is measured."""


@dataclass(frozen=True)
class Breakdown:
    """The times of a step's parts, and of placing and fetching, which are done once.

    Attributes:
        parts: seconds of a step by part, as `Mark` names them, less the cost of the marks.
        step_seconds: seconds of a step in the timed pass, which has no marks.
        steps: the number of steps traced.
        marks: the number of marks in a step.
        mark_seconds: the cost of a mark.
        placing_seconds: seconds of `reallocate`: making and placing data, first parameters and
            state. A captured graph is bound to its memory, so this includes capturing it.
        fetching_seconds: seconds to fetch the traced steps' losses; None where there are none.
        unmarked: what is wrong with the marks, where they divide a step into no parts.
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

        Above zero it is the loop around the parts, and whatever disturbed the timed pass alone. It
        is below zero where the parts take longer than the step: waiting for the device at every
        mark prevents overlap, a captured graph is traced call by call, and a mark costs a little
        more between real work than in the loop that measures its cost.
        """
        return self.step_seconds - sum(self.parts.values())

    @property
    def adds_up(self) -> bool:
        """Whether the parts add up to the timed step, within a fifth: else they explain nothing."""
        return abs(self.unattributed) <= ADDS_UP * self.step_seconds

    @property
    def divides(self) -> bool:
        """Whether there is more than the whole step, whose time is known already."""
        return set(self.parts) != {"step"}

    @property
    def traced_seconds(self) -> float:
        """About what a step takes while it is traced, marks and all."""
        return sum(self.parts.values()) + self.marks * self.mark_seconds

    @property
    def is_far(self) -> bool:
        """Whether the parts take many times as long as the timed step."""
        return sum(self.parts.values()) > FAR * self.step_seconds

    @property
    def hidden(self) -> str:
        """Why its parts are not shown; empty where they are, or where there are none."""
        rest = self.unattributed / self.step_seconds
        off = f"{abs(rest):.0%} {'less' if rest > 0 else 'more'} than the timed step"
        if self.is_far:
            off = f"over {math.floor(1 - rest):,} times as long as the timed step"
        if self.unmarked:
            return f"not shown: {self.unmarked}"
        shown = self.adds_up or not self.divides
        return "" if shown else f"not shown: traced one by one they take {off}"

    def metrics(self) -> dict[str, float]:
        """The figures by metric name, without parts that do not add up or do not divide a step."""
        shown = {PLACING: self.placing_seconds}
        if self.adds_up and self.divides:
            shown = {**self.parts, UNATTRIBUTED: self.unattributed, **shown}
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

    The time of the timed step is a median over readings, each a mean over its steps. To match this,
    the traced steps are grouped into stretches as long as a reading, and the parts are means over
    the middle third of the stretches by total time. (Medians over single steps would leave out what
    happens in one of ten: up to half of a PyTorch step.)

    Args:
        synchronize: the backend's.
        steps: the most steps that the program has room for.
        step_seconds: seconds of a step in the timed pass.
        every: steps of a reading in the timed pass.
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

    # The first traced step may take long: it may compile, or take a fused step apart.
    most = max(GIVEN_UP_S, FAR * step_seconds)
    # Try it twice, since a pause of the whole process, as on a shared machine, also ends it.
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
    """The mean seconds before each mark, over the middle third of the stretches by total time.

    There are at least three stretches if there are as many steps: the first may be a slow one.
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
    """Seconds that a call takes."""

    def whole(mark: Mark) -> None:
        work()
        mark("")

    [(_, seconds)] = laps(whole, synchronize)
    return seconds


def _by_step(found: list[tuple[str, float]], steps: int) -> tuple[list[str], HostArray]:
    """The marks of one step, and the seconds before each, of shape (steps, marks)."""
    seconds = np.array([s for _, s in found]).reshape(steps, -1)
    return [name for name, _ in found[: seconds.shape[1]]], seconds
