"""When a program is audited for work off the clock, and in what: see `expkit.measure.audit`."""

from __future__ import annotations

import math
from functools import partial
from time import perf_counter

import numpy as np

from expkit.contracts import HostArray
from expkit.measure import answer
from expkit.measure.audit import (
    AHEAD,
    CLOCKED_S,
    FETCHES,
    GROWTH,
    Audit,
    Finding,
    left_in_readings,
    number_seconds,
    quick_switches,
    remembered,
)
from expkit.measure.subject import Subject
from expkit.measure.warmup import WarmUp

RESET_S = 0.05
"""About how long a reset may take of a program that is built for more steps than are timed."""
MANY = 16
"""How many times as many steps are looked at, at most, where they are too short to tell."""


class Audits:
    """Looks for work off the clock before the first repeat and after the last.

    Args:
        rng: draws starts that the program has not seen.
    """

    def __init__(self, subject: Subject, rng: np.random.Generator) -> None:
        self._subject, self._rng = subject, rng
        self._short = False
        self._ahead_s = 0.0
        """About what is done for a step before the clock."""
        self._number_seconds = 0.0
        """Of fetching one number from the device."""
        self.readings: list[tuple[int, float, float]] = []
        """Of each: steps, seconds, and the processor's beyond reading its losses again."""

    @quick_switches()
    def early(self, warm: WarmUp) -> Finding | None:
        """Work that the clock does not see, of steps that all but take no time: before they are
        made many.
        """
        self._number_seconds = self._price_numbers()
        self._short = warm.step_seconds * self._subject.room < CLOCKED_S
        if not self._short:
            return None
        audit = self._audit(number_s=self._number_seconds)
        return audit.all_left() or self._beside_steps(audit)

    @quick_switches()
    def before(self) -> Finding | None:
        """The same of the program that will be timed; of what was done ahead if not looked at."""
        audit = self._audit(number_s=self._number_seconds)
        if found := audit.left(self._subject.lengths, self._subject.step_seconds):
            return found
        return None if self._short else self._beside_steps(audit)

    def _beside_steps(self, audit: Audit) -> Finding | None:
        """What is done while nobody asks, or ahead; then the former in more steps, where these are
        too short to tell.
        """
        longer, found = audit, audit.meanwhile() or self._ahead(audit)
        while found is None and longer.short and longer.room < MANY * audit.room:
            longer = self._audit(GROWTH * longer.room)
            found = longer.meanwhile()
        return found

    def _ahead(self, audit: Audit) -> Finding | None:
        found = audit.ahead(self._subject.build)
        self._ahead_s = audit.ahead_s
        return found

    @quick_switches()
    def after(self, step_seconds: float) -> Finding | None:
        """The same after the last repeat, and over the repeats themselves.

        Args:
            step_seconds: of the timed steps.
        """
        subject = self._subject
        number_s = max(self._number_seconds, self._price_numbers())
        steps, clocked, read = zip(*self.readings, strict=True)
        beside = [more - FETCHES * n * number_s for n, more in zip(steps, read, strict=True)]
        if found := left_in_readings(clocked, beside):
            return found
        audit = self._audit(number_s=number_s)
        found = audit.left(subject.lengths, subject.step_seconds) or audit.meanwhile()
        if not found and self._ahead_s > AHEAD * step_seconds:  # of the step as it was then: less
            found = audit.ahead(subject.build, step_seconds)
        if found or not self._start():
            return found
        # What takes next to no time is asked for more of it: its work would show in that.
        timed_s = max(subject.every * step_seconds, 1e-9)
        readings = min(subject.room // subject.every, math.ceil(CLOCKED_S / timed_s)) or 1

        def elsewhere() -> None:
            subject.program.load(self._start())

        starts = (partial(subject.taking, start, readings) for start in (subject.back, elsewhere))
        found = remembered(readings * timed_s, *starts)
        subject.back()
        return found

    def _start(self) -> dict[str, HostArray]:
        """One that the program has not seen; empty where there is none."""
        return answer.another_start(self._subject.backend, self._subject.workload, self._rng)

    def _audit(self, room: int = 0, number_s: float | None = None) -> Audit:
        """Of this program, or of one that has room for so many more steps; by default of one that
        has where its own take next to no time.
        """
        subject = self._subject
        program, room = subject.program, room or subject.room
        if subject.step_seconds and room * subject.step_seconds < CLOCKED_S:
            more = 1 + int(CLOCKED_S / (room * subject.step_seconds))
            # A reset that takes long may do so for the steps' sake, and there are many to come.
            room *= max(1, min(more, int(RESET_S / self._reset_seconds())))
        if room > subject.room:
            program = subject.build(room)
        synchronize = partial(subject.backend.synchronize, program)
        return Audit(program, synchronize, room, self._price_numbers, number_s)

    def _reset_seconds(self) -> float:
        started = perf_counter()
        self._subject.program.reset()
        self._subject.synchronize()
        return perf_counter() - started

    def _price_numbers(self) -> float:
        """Seconds of fetching a loss; an operation has none."""
        return number_seconds(self._subject.backend) if self._subject.learns else 0.0
